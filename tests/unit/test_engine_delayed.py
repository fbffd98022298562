"""Jobs whose device wants them done later."""

from __future__ import annotations

import msgspec
import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

LATER_MS = 60_000


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker()
    return desk


def look_after(desk: Desk, span_ms: int) -> list[m.Assignment]:
    """Let the workers be heard, and time pass."""
    state = m.WorkerState(ts=0, seq=0, status=m.Activity.IDLE, cpu_pct=0, mem_pct=0, inflight=0)
    desk.now_ms += span_ms
    desk.handle(e.StateReceived(worker=m.WorkerId("w1"), state=state))
    desk.handle(e.TimePassed())
    return desk.sent(topics.ASSIGN, m.Assignment)


def test_nobody_works_on_a_delayed_job_before_its_time(desk: Desk) -> None:
    desk.submit(not_before_ms=LATER_MS)
    (ack,) = desk.sent(topics.ACK, m.JobAck)
    assert ack.status is m.AckStatus.ACCEPTED
    assert desk.sent(topics.ASSIGN, m.Assignment) == []
    assert desk.saved[m.JobKey("K1")].status is m.JobStatus.QUEUED
    assert look_after(desk, LATER_MS - 1) == []
    (assignment,) = look_after(desk, 1)
    assert assignment.deadline_ms == desk.settings.default_deadline_ms


def test_its_own_deadline_counts_from_receipt_and_lies_behind() -> None:
    for deadline_ms in (1, LATER_MS):
        with pytest.raises(msgspec.ValidationError, match="not_before_ms"):
            msgspec.convert(
                {"prompt": "x", "not_before_ms": LATER_MS, "deadline_ms": deadline_ms}, m.JobSubmit
            )
    desk = Desk()
    desk.submit(not_before_ms=LATER_MS, deadline_ms=LATER_MS + 5)
    desk.worker()
    (assignment,) = look_after(desk, LATER_MS)
    assert assignment.deadline_ms == 5


def test_it_is_cancelled_while_it_waits(desk: Desk) -> None:
    desk.submit(not_before_ms=LATER_MS)
    desk.handle(e.JobCancelled(device=m.DeviceId("d1"), id=desk.job().id))
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert result.status is m.JobStatus.CANCELLED
    assert look_after(desk, LATER_MS) == []
    assert desk.all_of(c.SaveJob) == []


@pytest.mark.parametrize("down_ms", [1_000, 2 * LATER_MS])
def test_it_outlives_a_restart_and_begins_when_it_should(desk: Desk, down_ms: int) -> None:
    desk.submit(not_before_ms=LATER_MS)
    desk.now_ms += down_ms
    desk.restart()
    desk.worker()
    given = [*desk.sent(topics.ASSIGN, m.Assignment), *look_after(desk, LATER_MS)]
    assert [assignment.attempt for assignment in given] == [1]


def test_what_asks_for_the_cloud_goes_there_when_its_time_has_come(desk: Desk) -> None:
    desk.submit(not_before_ms=LATER_MS, escalate="always")
    assert desk.all_of(c.StartCompletion) == []
    look_after(desk, LATER_MS)
    assert len(desk.all_of(c.StartCompletion)) == 1


def test_it_gets_the_answer_that_an_equal_one_got_but_not_before(desk: Desk) -> None:
    desk.submit()
    prompt = desk.job().submit.prompt
    desk.done()
    desk.submit(2, prompt=prompt, not_before_ms=LATER_MS)
    assert desk.sent(topics.RESULT, m.JobResult) == []
    assert look_after(desk, LATER_MS) == []
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert result.answered_by is m.AnsweredBy.CACHE


def test_what_it_waited_by_wish_does_not_count_as_late(desk: Desk) -> None:
    desk.submit(not_before_ms=LATER_MS)
    look_after(desk, LATER_MS)
    desk.done()
    desk.handle(e.LoadLooked(memory_pct=None))
    assert desk.engine.load().edge_p50_ms == 0


def test_delayed_jobs_do_not_fill_the_queue_and_have_a_limit_of_their_own() -> None:
    desk = Desk(EngineSettings(queue_limit=1, delayed_limit=2))
    for number in (1, 2):
        desk.submit(number, not_before_ms=LATER_MS)
        assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    desk.submit(3, not_before_ms=LATER_MS, priority=9)
    (ack,) = desk.sent(topics.ACK, m.JobAck)
    assert (ack.status, ack.code) == (m.AckStatus.REJECTED, "busy")
    assert ack.retry_after_ms > 0
    desk.submit(4)
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    summary = desk.engine.summary()
    assert (summary.queued, summary.delayed) == (1, 2)
    desk.submit(5, priority=9)
    assert [said.id for said in desk.sent(topics.RESULT, m.JobResult)] == ["4"], "it made way"
    desk.restart()
    summary = desk.engine.summary()
    assert (summary.queued, summary.delayed) == (1, 2)


def test_when_its_time_has_come_a_full_queue_does_not_turn_it_away() -> None:
    desk = Desk(EngineSettings(queue_limit=1))
    desk.submit(1, not_before_ms=LATER_MS)
    desk.submit(2)
    desk.handle(e.TimePassed(), after_ms=LATER_MS)
    assert desk.sent(topics.RESULT, m.JobResult) == []
    assert (desk.engine.summary().queued, desk.engine.summary().delayed) == (2, 0)
