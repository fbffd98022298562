"""The limits on a job's time: until somebody begins, for one attempt, between signs of life."""

from __future__ import annotations

import msgspec
import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.settings import EngineSettings, RetrySettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.library import LibraryAnswer, MatchKind
from tests.unit.engine_desk import Desk

SOON_MS = 5_000
STATE = m.WorkerState(ts=0, seq=0, status=m.Activity.IDLE, cpu_pct=0, mem_pct=0, inflight=0)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def beat(desk: Desk, after_ms: int, *workers: str) -> None:
    """Let time pass, with the workers heard of."""
    desk.now_ms += after_ms
    for worker in workers or ("w1",):
        desk.handle(e.StateReceived(worker=m.WorkerId(worker), state=STATE))
    desk.handle(e.TimePassed())


def results(desk: Desk) -> list[tuple[m.JobStatus, str]]:
    return [(said.status, said.code) for said in desk.sent(topics.RESULT, m.JobResult)]


def assigned(desk: Desk) -> list[tuple[str, int]]:
    sends = [x for x in desk.commands if isinstance(x, c.Send) and x.channel is topics.ASSIGN]
    return [(x.ids[0], x.message.attempt) for x in sends if isinstance(x.message, m.Assignment)]


UNSTARTED = [(m.JobStatus.EXPIRED, "not_started_in_time")]


# -------------------------------------------------------------------- until somebody begins


def test_a_job_that_nobody_begins_with_in_time_ends(desk: Desk) -> None:
    desk.submit(start_within_ms=SOON_MS)
    desk.handle(e.TimePassed(), after_ms=SOON_MS - 1)
    assert results(desk) == []
    assert desk.engine.next_wake_at_ms() == desk.now_ms + 1
    desk.handle(e.TimePassed(), after_ms=1)
    assert results(desk) == UNSTARTED
    assert desk.job().dead


def test_it_is_given_to_nobody_after_that(desk: Desk) -> None:
    desk.submit(start_within_ms=SOON_MS)
    desk.now_ms += SOON_MS
    desk.worker()
    assert assigned(desk) == []
    assert results(desk) == UNSTARTED


def test_one_that_a_board_began_with_has_its_deadline_alone(desk: Desk) -> None:
    desk.worker()
    desk.submit(start_within_ms=SOON_MS)
    desk.started()
    beat(desk, SOON_MS)
    assert results(desk) == []
    desk.done()
    assert results(desk) == [(m.JobStatus.OK, "")]


def test_that_a_board_began_is_not_forgotten_over_a_restart(desk: Desk) -> None:
    desk.worker()
    desk.submit(start_within_ms=SOON_MS)
    desk.started()
    desk.restart()
    desk.worker("w2")
    desk.now_ms += desk.settings.lease_ms
    desk.handle(e.TimePassed())
    assert results(desk) == []
    beat(desk, desk.settings.retry.backoff_ms, "w2")
    assert assigned(desk) == [("w2", 2)]


@pytest.mark.parametrize("down_ms", [SOON_MS - 1, SOON_MS])
def test_the_limit_outlives_a_restart(desk: Desk, down_ms: int) -> None:
    desk.submit(start_within_ms=SOON_MS)
    desk.now_ms += down_ms
    desk.restart()
    desk.handle(e.TimePassed())
    assert (results(desk) == UNSTARTED) is (down_ms == SOON_MS)
    desk.handle(e.TimePassed(), after_ms=1)
    assert desk.job().status is m.JobStatus.EXPIRED


def test_a_board_lost_before_it_said_that_it_began_did_not(desk: Desk) -> None:
    desk.worker()
    desk.submit(start_within_ms=SOON_MS)
    desk.now_ms += SOON_MS
    desk.handle(e.TimePassed())
    assert results(desk) == [], "under a lease it counts as begun"
    desk.presence(status=m.PresenceStatus.OFFLINE)
    desk.handle(e.TimePassed(), after_ms=desk.settings.lease_ms)
    assert desk.job().status is m.JobStatus.EXPIRED


def test_a_board_that_gives_it_back_untouched_did_not_begin(desk: Desk) -> None:
    for code, status in (("busy", m.JobStatus.EXPIRED), ("onnx", m.JobStatus.QUEUED)):
        desk = Desk()
        desk.worker()
        desk.submit(start_within_ms=SOON_MS)
        failure = m.JobFailed(attempt=1, code=code)
        key, worker = m.JobKey("K1"), m.WorkerId("w1")
        desk.handle(e.FailureReceived(worker=worker, job=key, failure=failure))
        desk.presence(status=m.PresenceStatus.OFFLINE)
        desk.handle(e.TimePassed(), after_ms=SOON_MS)
        assert desk.job().status is status, code


def test_it_counts_from_when_the_job_may_begin(desk: Desk) -> None:
    desk.submit(start_within_ms=SOON_MS, not_before_ms=60_000)
    desk.handle(e.TimePassed(), after_ms=60_000)
    desk.handle(e.TimePassed(), after_ms=SOON_MS - 1)
    assert results(desk) == []
    desk.handle(e.TimePassed(), after_ms=1)
    assert results(desk) == UNSTARTED


def test_the_fleet_may_have_a_default() -> None:
    desk = Desk(EngineSettings(default_start_within_ms=SOON_MS))
    desk.submit(1)
    desk.submit(2, start_within_ms=2 * SOON_MS)
    desk.handle(e.TimePassed(), after_ms=SOON_MS)
    assert [said.id for said in desk.sent(topics.RESULT, m.JobResult)] == ["1"]


def test_the_offline_library_may_answer_instead(desk: Desk) -> None:
    written = LibraryAnswer(text="closed", kind=MatchKind.EXACT, entry="hours", score=1.0)
    desk.engine = Engine(desk.settings, "e", offline=lambda _: written)
    desk.submit(start_within_ms=SOON_MS)
    desk.handle(e.TimePassed(), after_ms=SOON_MS)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.text, result.answered_by) == ("closed", m.AnsweredBy.OFFLINE)
    assert (result.code, result.degraded) == ("not_started_in_time", True)


def test_a_call_to_the_cloud_is_a_begin_unless_nobody_was_asked(desk: Desk) -> None:
    for code, expected in (("provider_open", UNSTARTED), ("provider_rate_limited", [])):
        desk = Desk()
        desk.submit(start_within_ms=SOON_MS, escalate="always")
        desk.handle(e.TimePassed(), after_ms=SOON_MS - 1)
        assert results(desk) == [], "a call is under way"
        desk.cloud_failed(1, code=code, retry_after_ms=1_500)
        desk.handle(e.TimePassed(), after_ms=1)
        assert results(desk) == expected, code


def test_what_waits_for_a_cheaper_hour_does_not_wait_beyond_it() -> None:
    dear_until_ms = 9_000_000
    desk = Desk(tariff=lambda now_ms: max(now_ms, dear_until_ms))
    desk.submit(1, escalate="always", defer="offpeak")
    assert desk.all_of(c.StartCompletion) == []
    desk.submit(2, escalate="always", defer="offpeak", start_within_ms=SOON_MS)
    assert len(desk.all_of(c.StartCompletion)) == 1


def test_who_waits_for_an_equal_question_that_was_begun_goes_on_waiting(desk: Desk) -> None:
    desk.worker()
    desk.submit(1, prompt="Is it warm?")
    desk.submit(2, prompt="Is it warm?", start_within_ms=SOON_MS)
    beat(desk, SOON_MS)
    assert results(desk) == []
    desk.restart()
    desk.done()
    assert results(desk) == [(m.JobStatus.OK, "")] * 2


def test_who_waits_for_an_equal_question_that_nobody_began_with_ends(desk: Desk) -> None:
    desk.submit(1, prompt="Is it warm?")
    desk.submit(2, prompt="Is it warm?", start_within_ms=SOON_MS)
    desk.handle(e.TimePassed(), after_ms=SOON_MS)
    assert results(desk) == UNSTARTED
    desk.worker()
    assert assigned(desk) == [("w1", 1)]


def test_a_long_text_has_begun_with_the_first_of_its_parts(desk: Desk) -> None:
    text = "What runs?\n\n" + "\n\n".join("A pump runs as it should. " * 60 for _ in range(3))
    for is_there in (False, True):
        desk = Desk()
        if is_there:
            desk.worker()
        desk.submit(prompt=text, split="paragraphs", start_within_ms=SOON_MS)
        beat(desk, SOON_MS)
        assert results(desk) == ([] if is_there else UNSTARTED)


def test_under_a_lease_it_has_begun_also_while_nobody_can_be_heard(desk: Desk) -> None:
    desk.worker()
    desk.submit(start_within_ms=SOON_MS)
    desk.handle(e.LinkLost())
    desk.handle(e.TimePassed(), after_ms=desk.settings.lease_ms)
    assert desk.job().is_open
    desk.handle(e.LinkRestored(session_present=True))
    desk.done()
    assert results(desk) == [(m.JobStatus.OK, "")]


def test_what_one_gets_in_place_of_an_answer_is_no_answer_for_those_who_wait_for_it() -> None:
    written = LibraryAnswer(text="closed", kind=MatchKind.EXACT, entry="hours", score=1.0)
    desk = Desk()
    desk.engine = Engine(desk.settings, "e", offline=lambda _: written)
    desk.submit(1, prompt="Is it warm?", start_within_ms=SOON_MS)
    desk.submit(2, prompt="Is it warm?")
    desk.handle(e.TimePassed(), after_ms=SOON_MS)
    assert [said.id for said in desk.sent(topics.RESULT, m.JobResult)] == ["1"]
    desk.worker()
    assert assigned(desk) == [("w1", 1)]


def test_an_operator_who_replays_it_gives_it_the_span_anew(desk: Desk) -> None:
    desk.submit(start_within_ms=SOON_MS)
    desk.handle(e.TimePassed(), after_ms=SOON_MS)
    desk.confirmed()
    desk.now_ms += 60_000
    request = m.AdminRequest(req="r", op=m.AdminOp.JOB_RETRY, job="K1")
    desk.handle(e.AdminAsked(admin="a", request=request, found=desk.job()))
    desk.handle(e.TimePassed(), after_ms=SOON_MS - 1)
    assert results(desk) == []
    desk.handle(e.TimePassed(), after_ms=1)
    assert results(desk) == UNSTARTED


def test_a_board_that_hands_it_up_has_begun(desk: Desk) -> None:
    desk.worker()
    desk.submit(start_within_ms=SOON_MS)
    desk.escalated(m.Reason.COMPLEX, answer=None)
    desk.cloud_failed(2, code="provider_open", retry_after_ms=1_900)
    desk.presence(status=m.PresenceStatus.DRAINING)
    desk.now_ms += SOON_MS
    desk.handle(e.TimePassed())
    assert desk.job().is_open


def test_a_board_that_finds_it_too_long_has_begun(desk: Desk) -> None:
    text = "What runs?\n\n" + "\n\n".join("A pump runs as it should. " * 60 for _ in range(3))
    desk.worker()
    desk.submit(prompt=text, split="auto", start_within_ms=SOON_MS)
    assert assigned(desk) == [("w1", 1)]
    desk.presence(status=m.PresenceStatus.DRAINING)
    desk.escalated(m.Reason.TOO_LONG, answer=None)
    assert desk.job().parts > 1
    beat(desk, SOON_MS)
    assert desk.job().is_open


# -------------------------------------------------------------------- one attempt


def slow(desk: Desk, *, attempt: int = 1, worker: str = "w1") -> None:
    """Let a worker make progress beyond the span of an attempt."""
    for _ in range(4):
        desk.now_ms += SOON_MS // 4
        key = m.JobKey("K1")
        desk.handle(e.ProgressReceived(worker=m.WorkerId(worker), job=key, attempt=attempt))
    desk.handle(e.TimePassed())


def test_an_attempt_that_takes_too_long_is_called_off_and_made_elsewhere(desk: Desk) -> None:
    desk.worker("w1")
    desk.submit(attempt_ms=SOON_MS)
    desk.worker("w2")
    desk.started()
    slow(desk)
    (cancel,) = desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)
    assert (cancel.job, cancel.attempt) == ("K1", 1)
    desk.done()
    assert results(desk) == [], "it is over, whatever its worker says then"
    beat(desk, desk.settings.retry.backoff_ms, "w1", "w2")
    assert assigned(desk) == [("w2", 2)]
    assert desk.job().edge_tries == 2
    desk.done(2, "w2")
    assert results(desk) == [(m.JobStatus.OK, "")]


def test_each_attempt_has_its_own_span_and_counts_as_a_try() -> None:
    desk = Desk(EngineSettings(default_attempt_ms=SOON_MS, retry=RetrySettings(max_attempts=2)))
    desk.worker()
    desk.submit()
    slow(desk)
    beat(desk, desk.settings.retry.backoff_ms)
    assert assigned(desk) == [("w1", 2)]
    slow(desk, attempt=2)
    assert results(desk) == [(m.JobStatus.FAILED, "attempt_too_slow")]
    assert desk.job().dead


def test_a_worker_is_not_left_alone_for_spans_that_jobs_choose(desk: Desk) -> None:
    desk.worker()
    for number in range(1, 8):
        desk.submit(number, attempt_ms=100, deadline_ms=900)
        desk.now_ms += 100
        desk.handle(e.TimePassed())
        assert not desk.engine.workers()[0].left_alone
        beat(desk, 900)


def test_the_span_of_an_attempt_outlives_a_restart(desk: Desk) -> None:
    desk.worker()
    desk.submit(attempt_ms=SOON_MS)
    desk.now_ms += SOON_MS - 100
    desk.restart()
    desk.handle(e.TimePassed(), after_ms=100)
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel) == [], "its answer may be on its way"
    desk.wake()
    assert len(desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)) == 1


def test_it_is_not_called_off_while_nobody_can_be_told_or_heard(desk: Desk) -> None:
    desk.worker()
    desk.submit(attempt_ms=SOON_MS)
    desk.handle(e.LinkLost())
    desk.handle(e.TimePassed(), after_ms=SOON_MS)
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel) == []
    wake_ms = desk.engine.next_wake_at_ms()
    assert wake_ms is not None
    assert wake_ms > desk.now_ms, "it must not keep the dispatcher awake"
    desk.handle(e.LinkRestored(session_present=True))
    desk.handle(e.TimePassed())
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel) == []
    desk.done()
    assert results(desk) == [(m.JobStatus.OK, "")]


def test_a_call_to_the_cloud_is_an_attempt_too(desk: Desk) -> None:
    desk.submit(attempt_ms=SOON_MS, escalate="always")
    (call,) = desk.all_of(c.StartCompletion)
    assert isinstance(call, c.StartCompletion)
    assert call.request.timeout_ms == SOON_MS


# -------------------------------------------------------------------- signs of life


def test_a_job_may_have_a_lease_of_its_own(desk: Desk) -> None:
    desk.worker()
    desk.submit(lease_ms=4_000)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert assignment.lease_ms == 4_000
    desk.handle(e.ProgressReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), attempt=1))
    beat(desk, 3_999)
    assert desk.job().worker == "w1"
    beat(desk, 1)
    assert (desk.job().worker, desk.job().lapsed) == (None, True)


def test_it_is_the_jobs_over_a_restart_and_over_a_lost_link(desk: Desk) -> None:
    desk.worker()
    desk.submit(lease_ms=4_000)
    desk.restart()
    assert desk.job().lease_until_ms == desk.now_ms + 4_000
    desk.now_ms += 1_000
    desk.handle(e.LinkRestored(session_present=True))
    assert desk.job().lease_until_ms == desk.now_ms + 4_000
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert assignment.lease_ms == 4_000


@pytest.mark.parametrize(
    "fields",
    [
        {"lease_ms": 2_999},
        {"lease_ms": 3_600_001},
        {"attempt_ms": 99},
        {"start_within_ms": 0},
        {"start_within_ms": 7 * 86_400_000 + 1},
    ],
)
def test_spans_beyond_their_bounds_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(fields))):
        msgspec.convert({"prompt": "x"} | fields, m.JobSubmit)
