"""The rules of the client, without a broker and without a clock."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fleet_client.options import build_submit, check_job_id
from fleet_client.table import JobTable, Outgoing
from fleet_client.tracker import JobTracker, Phase, ResendSchedule
from fleet_protocol.codec import encode
from fleet_protocol.errors import ConfigError, ProtocolError, RejectedError
from fleet_protocol.messages import (
    AckStatus,
    DispatcherPresence,
    DispatcherStatus,
    JobAck,
    JobResult,
    JobStatus,
    Message,
    TokenChunk,
)

SCHEDULE = ResendSchedule(
    unanswered_ms=1_000, unanswered_most_ms=4_000, silence_ms=10_000, silence_most_ms=20_000
)
ACCEPTED = JobAck(status=AckStatus.ACCEPTED)
RESULT = JobResult(id="j1", status=JobStatus.OK, text="seven")


@pytest.fixture
def table() -> JobTable:
    return JobTable("d1", root="fleet/v1", schedule=SCHEDULE)


@pytest.fixture
def job(table: JobTable) -> JobTracker:
    return table.add("j1", build_submit("how many?"), 0)


def hear(table: JobTable, what: str, message: Message, now_ms: int = 0) -> JobTracker | None:
    return table.receive(f"fleet/v1/dev/d1/jobs/j1/{what}", encode(message), now_ms)


def times_sent(table: JobTable, until_ms: int) -> list[int]:
    """Run the clock in steps of 100 ms and return when the submission went out."""
    return [
        now_ms
        for now_ms in range(0, until_ms, 100)
        for out in sent(table, now_ms)
        if out.topic.endswith("/submit")
    ]


def sent(table: JobTable, now_ms: int) -> list[Outgoing]:
    """Send what is due, over a broker that confirms at once."""
    due = table.due(now_ms)
    for out in due:
        table.confirmed(out.job_id)
    return due


def spread(job: JobTracker) -> float:
    """The job's own share of the 20 % by which pauses differ between jobs."""
    return 0.8 + 0.4 * job._spread


def test_an_unanswered_submission_is_repeated_with_growing_pauses(
    table: JobTable, job: JobTracker
) -> None:
    times = times_sent(table, 16_000)
    pauses = [after - before for before, after in pairwise(times)]
    assert times[0] == 0
    assert len(pauses) >= 4
    expected = [1_000, 2_000, 4_000, 4_000]
    for pause, nominal in zip(pauses, expected, strict=False):
        assert abs(pause - nominal * spread(job)) <= 100


def test_a_repeated_submission_is_the_same_bytes_on_the_same_topic(
    table: JobTable, job: JobTracker
) -> None:
    first, second = sent(table, 0), sent(table, 60_000)
    assert [(o.topic, o.payload) for o in first] == [(o.topic, o.payload) for o in second]
    assert first[0].topic == f"fleet/v1/dev/d1/jobs/{job.id}/submit"


def test_nothing_is_repeated_while_the_broker_has_not_confirmed_the_last_time(
    table: JobTable, job: JobTracker
) -> None:
    assert table.due(0)
    assert not any(table.due(now_ms) for now_ms in range(100, 60_000, 100))
    table.confirmed(job.id)
    assert any(table.due(now_ms) for now_ms in range(60_000, 80_000, 100))


def test_an_accepted_job_is_not_repeated_until_a_long_silence(
    table: JobTable, job: JobTracker
) -> None:
    sent(table, 0)
    hear(table, "ack", ACCEPTED)
    assert job.phase is Phase.ACCEPTED
    times = times_sent(table, 13_000)
    assert len(times) == 1
    assert times[0] >= 8_000


def test_a_growing_answer_is_no_silence(table: JobTable, job: JobTracker) -> None:
    sent(table, 0)
    for i in range(10):
        hear(table, "tok", TokenChunk(i=i, t="x"), now_ms=i * 5_000)
    assert job.resend_at_ms is not None
    assert job.resend_at_ms > 45_000 + 7_000


def test_a_busy_dispatcher_is_left_alone_for_as_long_as_it_asks(
    table: JobTable, job: JobTracker
) -> None:
    sent(table, 0)
    hear(table, "ack", JobAck(status=AckStatus.REJECTED, code="busy", retry_after_ms=7_000))
    assert job.phase is Phase.BUSY
    assert not sent(table, 6_999)
    assert sent(table, 8_500)


def test_a_refused_job_ends_with_its_code(table: JobTable, job: JobTracker) -> None:
    sent(table, 0)
    hear(table, "ack", JobAck(status=AckStatus.REJECTED, code="unknown_model"))
    assert job.is_closed
    assert isinstance(job.error, RejectedError)
    assert job.error.code == "unknown_model"
    assert not sent(table, 600_000)


def test_a_result_ends_the_job_and_later_words_change_nothing(
    table: JobTable, job: JobTracker
) -> None:
    hear(table, "res", RESULT)
    hear(table, "res", JobResult(id="j1", status=JobStatus.FAILED))
    hear(table, "ack", JobAck(status=AckStatus.REJECTED, code="malformed"))
    assert job.result == RESULT
    assert job.phase is Phase.FINISHED
    assert job.resend_at_ms is None
    assert table.next_due_ms is None


def test_a_result_without_any_ack_is_a_result(table: JobTable, job: JobTracker) -> None:
    sent(table, 0)
    hear(table, "res", RESULT)
    assert job.result == RESULT


def test_everything_open_is_said_again_when_the_link_is_back(
    table: JobTable, job: JobTracker
) -> None:
    sent(table, 0)
    hear(table, "ack", ACCEPTED)
    table.link_restored(3_000)
    assert [out.job_id for out in sent(table, 3_000)] == [job.id]


def test_everything_open_is_said_again_to_a_new_dispatcher(
    table: JobTable, job: JobTracker
) -> None:
    def dispatcher(epoch: str, status: DispatcherStatus, now_ms: int) -> None:
        word = DispatcherPresence(status=status, epoch=epoch)
        table.receive("fleet/v1/fleet/dispatcher", encode(word), now_ms)

    dispatcher("e1", DispatcherStatus.ONLINE, 0)
    sent(table, 0)
    hear(table, "ack", ACCEPTED)
    dispatcher("e1", DispatcherStatus.ONLINE, 1_000)
    assert not sent(table, 1_000)
    dispatcher("e1", DispatcherStatus.OFFLINE, 2_000)
    assert not sent(table, 2_000)
    dispatcher("e2", DispatcherStatus.ONLINE, 3_000)
    assert [out.job_id for out in sent(table, 3_000)] == [job.id]


def test_a_cancellation_whose_submission_got_lost_is_said_again_with_it(
    table: JobTable, job: JobTracker
) -> None:
    sent(table, 0)
    job.cancel(1_000)
    sent(table, 1_000)
    unknown = JobAck(status=AckStatus.REJECTED, code="unknown_job")
    hear(table, "ack", unknown, 1_100)
    assert not job.is_closed
    again = [out.topic.rpartition("/")[2] for out in sent(table, 6_000)]
    assert again == ["submit", "cancel"]
    hear(table, "res", JobResult(id="j1", status=JobStatus.CANCELLED), 6_100)
    assert job.phase is Phase.FINISHED


def test_a_cancellation_travels_behind_its_submission_until_the_result(
    table: JobTable, job: JobTracker
) -> None:
    sent(table, 0)
    hear(table, "ack", ACCEPTED)
    job.cancel(1_000)
    for now_ms in (1_000, 10_000, 20_000):
        assert [out.topic.rpartition("/")[2] for out in sent(table, now_ms)] == ["submit", "cancel"]
    hear(table, "res", JobResult(id="j1", status=JobStatus.CANCELLED))
    assert not sent(table, 900_000)


def test_the_id_of_an_open_job_is_that_job(table: JobTable, job: JobTracker) -> None:
    assert table.add("j1", build_submit("something else"), 5) is job


def test_words_for_other_devices_and_garbage_are_refused(table: JobTable, job: JobTracker) -> None:
    with pytest.raises(ProtocolError):
        table.receive("fleet/v1/dev/d2/jobs/j1/res", encode(RESULT), 0)
    with pytest.raises(ProtocolError):
        table.receive("fleet/v1/dev/d1/jobs/j1/res", b"\xff{", 0)
    assert table.receive("fleet/v1/dev/d1/jobs/unknown/res", encode(RESULT), 0) is None
    assert not job.is_closed


def test_a_timeout_says_how_far_the_job_came_and_what_to_do(
    table: JobTable, job: JobTracker
) -> None:
    assert "fleet doctor" in table.timed_out(job, 5.0).hint
    online = DispatcherPresence(status=DispatcherStatus.ONLINE, epoch="e1")
    table.receive("fleet/v1/fleet/dispatcher", encode(online), 0)
    assert "ACL" in table.timed_out(job, 5.0).hint
    hear(table, "ack", ACCEPTED)
    assert "accepted, but no result" in str(table.timed_out(job, 5.0))


@pytest.mark.parametrize("device", ["", "a/b", "a+", "#", "x" * 37, "ü"])
def test_a_device_id_that_cannot_stand_in_a_topic_is_refused(device: str) -> None:
    with pytest.raises(ConfigError):
        JobTable(device, root="fleet/v1")


@pytest.mark.parametrize("job_id", ["", "a/b", "a+", "#", "x" * 37])
def test_a_job_id_that_cannot_stand_in_a_topic_is_refused(job_id: str) -> None:
    with pytest.raises(RejectedError, match="not usable"):
        check_job_id(job_id)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("", {}),
        ([], {}),
        ([{"role": "king", "content": "x"}], {}),
        ("x", {"max_tokens": 0}),
        ("x", {"deadline_ms": -1}),
        ("x", {"escalate": "perhaps"}),
        ("x", {"temperature": "warm"}),
    ],
)
def test_a_job_that_the_fleet_would_refuse_is_refused_here(
    question: object, options: dict[str, object]
) -> None:
    with pytest.raises(RejectedError) as caught:
        build_submit(question, **options)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.code == "invalid_field"


def test_a_job_of_ten_megabytes_is_refused_here() -> None:
    with pytest.raises(RejectedError) as caught:
        build_submit([{"role": "user", "content": "x" * 900_000}])
    assert caught.value.code == "too_large"


def test_a_conversation_may_be_given_as_plain_dictionaries() -> None:
    submit = build_submit([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    assert [turn.content for turn in submit.conversation] == ["s", "u"]
