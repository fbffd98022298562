"""Equal questions at the same time: one is answered, each gets its own result."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.settings import EngineSettings, RetrySettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

SAME = "Is hall 7 warm?"


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker(slots=9)
    return desk


def ask(desk: Desk, *numbers: int, **fields: object) -> None:
    for number in numbers:
        desk.submit(number, **({"prompt": SAME} | fields))


def results(desk: Desk) -> dict[str, m.JobResult]:
    """Return the results that the last event led to, by the devices' ids."""
    return {result.id: result for result in desk.sent(topics.RESULT, m.JobResult)}


def assigned(desk: Desk) -> list[str]:
    return [assignment.job for assignment in desk.sent(topics.ASSIGN, m.Assignment)]


def test_equal_questions_are_one_generation_and_a_result_each(desk: Desk) -> None:
    ask(desk, 1)
    assert assigned(desk) == ["K1"]
    for number in range(2, 6):
        ask(desk, number)
        assert assigned(desk) == []
        assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    assert (desk.engine.summary().queued, desk.engine.summary().inflight) == (4, 1)
    desk.done()
    assert {name: result.text for name, result in results(desk).items()} == dict.fromkeys(
        "12345", "blue"
    )
    first, *others = results(desk).values()
    assert first.answered_by is m.AnsweredBy.EDGE
    for other in others:
        assert other.answered_by is m.AnsweredBy.CACHE
        assert (other.model, other.attempts, other.usage) == ("small", 0, m.Usage())
    assert len(desk.all_of(c.KeepAnswer)) == 1


def test_a_shared_answer_of_the_cloud_is_paid_once(desk: Desk) -> None:
    ask(desk, 1, 2, escalate="always")
    desk.cloud_finished(1)
    assert [result.cost_usd for result in results(desk).values()] == [0.001, 0.0]
    assert sum(spend.cost_usd for spend in desk.spends) == 0.001


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": "off"},
        {"privacy": "site"},
        {"temperature": 0.7},
        {"prompt": "Is hall 8 warm?"},
        {"escalate": "never"},
        {"defer": "offpeak"},
    ],
)
def test_a_job_that_wants_something_else_waits_for_nobody(
    desk: Desk, fields: dict[str, object]
) -> None:
    ask(desk, 1)
    ask(desk, 2, **fields)
    assert assigned(desk) == ["K2"]


def test_when_the_first_is_cancelled_another_takes_over(desk: Desk) -> None:
    ask(desk, 1, 2, 3)
    desk.cancel(1)
    assert desk.receivers(topics.WORKER_CANCEL) == ["w1"]
    assert assigned(desk) == ["K2"]
    assert results(desk)["1"].status is m.JobStatus.CANCELLED
    desk.done(key="K2")
    assert {name: x.status for name, x in results(desk).items()} == dict.fromkeys("23", "ok")


def test_when_the_first_fails_for_good_another_takes_over(desk: Desk) -> None:
    ask(desk, 1, 2)
    desk.failed(retryable=False)
    assert results(desk)["1"].status is m.JobStatus.FAILED
    assert assigned(desk) == ["K2"]


def test_when_the_first_expires_another_takes_over(desk: Desk) -> None:
    ask(desk, 1, deadline_ms=5_000)
    ask(desk, 2, deadline_ms=50_000)
    desk.handle(e.TimePassed(), after_ms=5_000)
    assert results(desk)["1"].status is m.JobStatus.EXPIRED
    assert assigned(desk) == ["K2"]


def test_what_was_kept_for_one_whose_deadline_passed_is_not_the_others_answer(desk: Desk) -> None:
    ask(desk, 1, deadline_ms=5_000)
    ask(desk, 2, deadline_ms=50_000)
    desk.escalated()
    desk.handle(e.TimePassed(), after_ms=5_000)
    assert results(desk)["1"].degraded
    assert list(results(desk)) == ["1"]
    assert assigned(desk) == ["K2"]


def test_a_degraded_answer_is_shared_with_its_label(desk: Desk) -> None:
    ask(desk, 1, 2)
    desk.escalated()
    desk.cloud_failed(2)
    for result in results(desk).values():
        assert (result.degraded, result.answered_by, result.code) == (True, "edge", "no_provider")
    assert desk.all_of(c.KeepAnswer) == []


def test_a_retry_after_trouble_does_not_let_the_others_run_besides() -> None:
    desk = Desk(EngineSettings(retry=RetrySettings(backoff_ms=1_000)))
    desk.worker(slots=9)
    ask(desk, 1, 2)
    desk.failed()
    assert assigned(desk) == []
    desk.wake()
    assert assigned(desk) == ["K1"]
    desk.done(attempt=2)
    assert sorted(results(desk)) == ["1", "2"]


def test_a_cancelled_follower_ends_alone(desk: Desk) -> None:
    ask(desk, 1, 2, 3)
    desk.cancel(2)
    assert list(results(desk)) == ["2"]
    assert desk.receivers(topics.WORKER_CANCEL) == []
    desk.done()
    assert sorted(results(desk)) == ["1", "3"]


def test_a_follower_whose_deadline_passes_expires_alone(desk: Desk) -> None:
    ask(desk, 1)
    ask(desk, 2, deadline_ms=5_000)
    desk.handle(e.TimePassed(), after_ms=5_000)
    assert results(desk)["2"].status is m.JobStatus.EXPIRED
    assert assigned(desk) == []


def test_a_more_urgent_job_does_not_wait_behind_a_less_urgent_one() -> None:
    desk = Desk()
    desk.worker(slots=1)
    desk.submit(9, prompt="something else")
    ask(desk, 1, priority=1)
    desk.submit(8, prompt="more important", priority=5)
    ask(desk, 2, priority=9)
    desk.done(key="K9")
    assert assigned(desk) == ["K2"]
    desk.done(key="K2")
    assert sorted(results(desk)) == ["1", "2"]
    assert assigned(desk) == ["K8"]


def test_followers_count_against_the_limit_of_the_queue() -> None:
    desk = Desk(EngineSettings(queue_limit=2))
    desk.worker(slots=1)
    ask(desk, 1, 2, 3, 4)
    assert desk.sent(topics.ACK, m.JobAck)[0].code == "busy"


def test_after_a_restart_the_others_wait_again_for_the_one_that_runs(desk: Desk) -> None:
    ask(desk, 2, 1, 3)
    desk.restart()
    assert assigned(desk) == []
    assert (desk.engine.summary().queued, desk.engine.summary().inflight) == (2, 1)
    desk.worker(slots=9)
    assert assigned(desk) == []
    desk.done(key="K2")
    assert sorted(results(desk)) == ["1", "2", "3"]


def test_after_a_restart_a_waiting_leader_gives_way_to_the_one_that_runs() -> None:
    desk = Desk()
    desk.worker(slots=1)
    desk.submit(9, prompt="something else")
    ask(desk, 1, priority=1)
    ask(desk, 2, priority=9)
    desk.done(key="K9")
    assert assigned(desk) == ["K2"]
    desk.restart()  # K1 is the older one and comes first
    desk.worker(slots=9)
    assert assigned(desk) == []
    desk.done(key="K2")
    assert sorted(results(desk)) == ["1", "2"]


def test_the_cloud_calls_made_anew_after_a_restart_are_one_for_all(desk: Desk) -> None:
    ask(desk, 1, 2, 3, escalate="always")
    desk.restart()
    assert len(desk.all_of(c.StartCompletion)) == 1
    desk.cloud_finished(2)
    assert sorted(results(desk)) == ["1", "2", "3"]


def test_a_worker_that_comes_back_with_the_lapsed_attempt_answers_for_all(desk: Desk) -> None:
    ask(desk, 1)
    desk.presence(status=m.PresenceStatus.OFFLINE)
    ask(desk, 2, priority=9)
    desk.done()
    assert sorted(results(desk)) == ["1", "2"]


def test_a_retried_dead_letter_follows_an_equal_job_that_runs(desk: Desk) -> None:
    ask(desk, 1)
    desk.failed(retryable=False)
    ask(desk, 2)
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1").ok
    assert assigned(desk) == []
    desk.done(key="K2")
    assert sorted(results(desk)) == ["1", "2"]


def test_the_end_of_its_pause_does_not_send_a_follower_to_a_board(desk: Desk) -> None:
    ask(desk, 1)
    desk.failed()
    ask(desk, 2, priority=9)
    assert assigned(desk) == ["K2"]
    desk.handle(e.TimePassed(), after_ms=2_000)
    assert assigned(desk) == []
    desk.done(key="K2")
    assert sorted(results(desk)) == ["1", "2"]


def test_a_follower_that_still_runs_somewhere_is_called_off_when_it_gets_the_answer() -> None:
    desk = Desk()
    desk.worker(slots=1)
    ask(desk, 1)
    desk.presence(status=m.PresenceStatus.OFFLINE)
    desk.worker("w2", slots=1, boot="b2")
    ask(desk, 2, priority=9)
    assert assigned(desk) == ["K2"]
    desk.presence()
    desk.started()
    assert desk.job("K1").status is m.JobStatus.RUNNING
    desk.done(worker="w2", key="K2")
    assert sorted(results(desk)) == ["1", "2"]
    assert desk.receivers(topics.WORKER_CANCEL) == ["w1"]
