"""Jobs that wait for a slot."""

from __future__ import annotations

from msgspec.structs import replace

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.queue import JobQueue, Need, need_of
from fleet_protocol.messages import DeviceId, JobId, JobKey, JobSubmit


def job(
    key: str, *, priority: int = 5, deadline_ms: int | None = None, received_ms: int = 0
) -> Job:
    return Job(
        key=JobKey(key),
        device=DeviceId("d"),
        id=JobId(key),
        submit=JobSubmit(prompt="hello", priority=priority),
        received_at_ms=received_ms,
        deadline_at_ms=deadline_ms,
    )


def drained(queue: JobQueue) -> list[str]:
    keys = []
    while heads := list(queue.heads()):
        keys.append(heads[0][1])
        queue.remove(heads[0][1])
    return keys


def test_priority_comes_first_then_deadline_then_receipt_then_key() -> None:
    queue = JobQueue()
    waiting = [
        job("F", priority=1),
        job("E", received_ms=9),
        job("D"),
        job("C"),
        job("B", deadline_ms=50),
        job("A", priority=9, deadline_ms=99),
    ]
    for each in waiting:
        queue.add(each, now_ms=0)
    assert drained(queue) == ["A", "B", "C", "D", "E", "F"]


def test_a_pausing_job_is_counted_but_not_ready() -> None:
    queue = JobQueue()
    pausing = replace(job("A"), not_before_ms=100)
    queue.add(pausing, now_ms=0)
    assert len(queue) == 1
    assert JobKey("A") in queue
    assert queue.ahead_of(5) == 1
    assert list(queue.heads()) == []
    queue.add(pausing, now_ms=100)
    assert len(queue) == 1
    assert drained(queue) == ["A"]


def test_a_removed_job_neither_counts_nor_comes_back() -> None:
    queue = JobQueue()
    for key in "ABC":
        queue.add(job(key), now_ms=0)
    queue.remove(JobKey("B"))
    queue.remove(JobKey("B"))
    queue.add(replace(job("C"), not_before_ms=5), now_ms=0)
    assert (len(queue), queue.ahead_of(0)) == (2, 2)
    assert drained(queue) == ["A"]


def test_jobs_with_different_needs_wait_apart() -> None:
    queue = JobQueue()
    queue.add(replace(job("A"), submit=JobSubmit(prompt="hi", model="big")), now_ms=0)
    queue.add(job("B", received_ms=1), now_ms=0)
    assert [key for _, key in queue.heads()] == ["A", "B"]


def test_a_need_is_rounded_down_so_that_no_board_is_ruled_out_wrongly() -> None:
    small = replace(job("A"), submit=JobSubmit(prompt="x" * 3_000, max_tokens=64))
    large = replace(job("B"), submit=JobSubmit(prompt="x" * 12_000, max_tokens=64, model="m"))
    assert need_of(small) == Need(None, 0)
    assert need_of(large) == Need("m", 1_024)


def test_the_least_is_the_last_that_came_of_the_lowest_priority() -> None:
    queue = JobQueue()
    assert queue.least(below=10) is None
    for key, priority in (("A", 5), ("B", 2), ("C", 2), ("D", 9)):
        queue.add(job(key, priority=priority), now_ms=0)
    queue.add(replace(job("E", priority=2), not_before_ms=50), now_ms=0)
    assert queue.least(below=2) is None
    for key, below in (("E", 3), ("C", 9), ("B", 5), ("A", 9), ("D", 10)):
        assert queue.least(below=below) == key
        queue.remove(JobKey(key))
    assert queue.least(below=10) is None


def test_cancelled_jobs_do_not_pile_up_in_a_lane() -> None:
    queue = JobQueue()
    queue.add(job("A", priority=9), now_ms=0)
    for number in range(5_000):
        queue.add(job(f"B{number}"), now_ms=0)
        queue.remove(JobKey(f"B{number}"))
    assert len(queue._lanes[Need(None, 0)]) < 2_000
    assert drained(queue) == ["A"]
