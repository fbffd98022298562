"""A device may cancel at any time; it gets one result, and nobody goes on working."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloud_dispatcher.core import commands as c
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

LONG = "What runs?\n\n" + "\n\n".join("A pump runs as it should. " * 60 for _ in range(3))


def delayed(desk: Desk) -> None:
    desk.worker()
    desk.submit(not_before_ms=60_000)


def queued(desk: Desk) -> None:
    desk.submit()


def pausing(desk: Desk) -> None:
    desk.worker()
    desk.submit()
    desk.failed()


def assigned(desk: Desk) -> None:
    desk.worker()
    desk.submit()


def running(desk: Desk) -> None:
    assigned(desk)
    desk.started()


def escalated(desk: Desk) -> None:
    running(desk)
    desk.escalated()


def waiting_for_the_cloud(desk: Desk) -> None:
    desk.submit(escalate="always")
    desk.cloud_failed(1, code="provider_rate_limited", retry_after_ms=5_000)


def split(desk: Desk) -> None:
    desk.worker(slots=2)
    desk.submit(prompt=LONG, split="paragraphs")


STATES: list[tuple[Callable[[Desk], None], m.JobStatus, int]] = [
    (delayed, m.JobStatus.QUEUED, 0),
    (queued, m.JobStatus.QUEUED, 0),
    (pausing, m.JobStatus.QUEUED, 0),
    (assigned, m.JobStatus.ASSIGNED, 1),
    (running, m.JobStatus.RUNNING, 1),
    (escalated, m.JobStatus.ESCALATED, 0),
    (waiting_for_the_cloud, m.JobStatus.ESCALATED, 0),
    (split, m.JobStatus.QUEUED, 2),
]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("arrange", "status", "calls_off"), STATES)
def test_cancelled_it_has_one_result_and_leaves_nothing_behind(
    arrange: Callable[[Desk], None], status: m.JobStatus, calls_off: int, *, again: bool
) -> None:
    desk = Desk()
    arrange(desk)
    assert desk.job().status is status
    if again:
        desk.restart()
    desk.cancel()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.CANCELLED, "cancelled")
    cancels = desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)
    assert len(cancels) == calls_off
    assert bool(desk.all_of(c.StopCompletion)) is (status is m.JobStatus.ESCALATED)
    desk.confirmed()
    ledger = desk.engine._ledger
    assert (ledger.jobs, ledger.delayed, len(ledger.queue)) == ({}, 0, 0)
    assert ledger.job_alarms.next_at_ms() is None
    assert all(worker.inflight == 0 for worker in desk.engine.workers())
    desk.worker("w2")
    assert desk.sent(topics.ASSIGN, m.Assignment) == []


def test_one_that_follows_an_equal_job_ends_alone() -> None:
    desk = Desk()
    desk.worker()
    for number in (1, 2):
        desk.submit(number, prompt="Is it warm?")
    desk.cancel(2)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.id, result.status) == ("2", m.JobStatus.CANCELLED)
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel) == []
    desk.done()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.id, result.text) == ("1", "blue")


def test_one_that_others_follow_leaves_the_work_to_them() -> None:
    desk = Desk()
    desk.worker()
    for number in (1, 2):
        desk.submit(number, prompt="Is it warm?")
    desk.cancel(1)
    assert [said.id for said in desk.sent(topics.RESULT, m.JobResult)] == ["1"]
    assert [said.job for said in desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)] == ["K1"]
    assert [said.job for said in desk.sent(topics.ASSIGN, m.Assignment)] == ["K2"]


@pytest.mark.parametrize("told", [False, True])
def test_too_late_it_gets_the_result_that_there_is(*, told: bool) -> None:
    desk = Desk()
    assigned(desk)
    desk.done()
    if told:
        desk.confirmed()
    desk.cancel()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.text) == (m.JobStatus.OK, "blue")
    assert desk.all_of(c.SaveJob) == []


def test_a_cancelled_job_submitted_again_stays_cancelled() -> None:
    desk = Desk()
    queued(desk)
    desk.cancel()
    desk.confirmed()
    desk.submit()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert result.status is m.JobStatus.CANCELLED
