"""Jobs that wait for a slot."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.queue import JobQueue, Need, need_of
from fleet_protocol.messages import DeviceId, JobId, JobKey, JobSubmit


def job(
    key: str,
    *,
    priority: int = 5,
    deadline_ms: int | None = None,
    received_ms: int = 0,
    device: str = "d",
) -> Job:
    return Job(
        key=JobKey(key),
        device=DeviceId(device),
        id=JobId(key),
        submit=JobSubmit(prompt="hello", priority=priority),
        received_at_ms=received_ms,
        deadline_at_ms=deadline_ms,
    )


def drained(queue: JobQueue, *, now_ms: int = 0, each_ms: int = 0) -> list[str]:
    """Give all ready jobs to a worker, one after another."""
    keys = []
    while first := next(queue.heads(), None):
        keys.append(str(first[1]))
        queue.take(first[1], now_ms=now_ms)
        now_ms += each_ms
        queue.age(now_ms)
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


def test_the_nearest_limit_counts_until_somebody_has_begun() -> None:
    queue = JobQueue()
    unstarted = replace(job("C", deadline_ms=900), start_by_at_ms=10)
    for each in (job("A", deadline_ms=50), job("B", deadline_ms=60), unstarted):
        queue.add(each, now_ms=0)
    assert drained(queue) == ["C", "A", "B"]
    for each in (job("A", deadline_ms=50), replace(unstarted, start_by_at_ms=None)):
        queue.add(each, now_ms=0)
    assert drained(queue) == ["A", "C"]


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


def test_cancelled_jobs_do_not_pile_up() -> None:
    queue = JobQueue()
    queue.add(job("A", priority=9), now_ms=0)
    queue.add(job("A2", device="d2"), now_ms=0)
    for number in range(5_000):
        for device in ("d1", f"e{number}"):
            queue.add(job(f"B{number}-{device}", device=device), now_ms=0)
            if number:
                queue.remove(JobKey(f"B{number}-{device}"))
    lane = queue._lanes[Need(None, 0)]
    ghosts = sum(len(each._heap) for level in lane.values() for each in level._flows.values())
    ghosts += sum(len(flow.jobs._heap) for flow in queue._flows.values())
    assert ghosts < 1_000
    assert drained(queue) == ["A", "A2", "B0-d1", "B0-e0"]


def test_a_job_may_leave_and_come_back_with_the_rank_that_it_had() -> None:
    queue = JobQueue()
    for key in "ABC":
        queue.add(job(key, device=key), now_ms=0)
    for key in "CABCBA":
        queue.remove(JobKey(key))
        queue.add(job(key, device=key), now_ms=0)
    assert drained(queue) == ["A", "B", "C"]


def test_a_device_that_submits_much_does_not_make_others_wait() -> None:
    queue = JobQueue()
    for number in range(1_000):
        queue.add(job(f"A{number:04}", device="loud", deadline_ms=number), now_ms=0)
    for _ in range(100):
        queue.take(next(queue.heads())[1], now_ms=0)
    for number in range(3):
        queue.add(job(f"B{number}", device="quiet", deadline_ms=9_999), now_ms=0)
    order = drained(queue)
    assert [order.index(f"B{number}") for number in range(3)] == [1, 3, 5]
    loud = [key for key in order if key.startswith("A")]
    assert loud == sorted(loud), "a device's own jobs keep their order"


def test_tenants_take_turns_and_so_do_the_devices_of_each() -> None:
    queue = JobQueue()
    for number in range(60):
        for device in range(5):
            queue.add(job(f"A{device}-{number}", device=f"a{device}"), now_ms=0, tenant="large")
        queue.add(job(f"B-{number}", device="b"), now_ms=0, tenant="small")
    first = drained(queue)[:100]
    assert sum(key.startswith("B") for key in first) == 50
    assert [sum(key.startswith(f"A{device}") for key in first) for device in range(5)] == [10] * 5


def test_who_was_away_saves_no_turns_up() -> None:
    queue = JobQueue()
    for number in range(100):
        queue.add(job(f"A{number:03}", device="a"), now_ms=0)
        queue.take(JobKey(f"A{number:03}"), now_ms=0)
    for number in range(10):
        queue.add(job(f"C{number}", device="c"), now_ms=0)
        queue.add(job(f"A9{number}", device="a"), now_ms=0)
    first = drained(queue)[:10]
    assert sum(key.startswith("A") for key in first) in {4, 5}


def test_what_waits_counts_a_priority_higher_each_time() -> None:
    queue = JobQueue(ageing_ms=1_000)
    queue.add(job("old", priority=2), now_ms=0)
    queue.add(job("fresh", priority=4, deadline_ms=1, device="e"), now_ms=0)
    for now_ms in (999, 1_000, 1_999, 2_000, 2_999):
        queue.age(now_ms)
    # Both rose by two: what came first stays as much more important as it was.
    assert next(queue.heads())[1] == "fresh"
    queue.take(JobKey("fresh"), now_ms=2_999)
    queue.add(job("later", priority=5, deadline_ms=1, device="f"), now_ms=2_999)
    assert next(queue.heads())[1] == "later"
    queue.age(3_000)
    queue.age(4_000 - 1)
    queue.take(JobKey("later"), now_ms=3_999)
    queue.add(job("even later", priority=4, device="g"), now_ms=3_999)
    assert drained(queue, now_ms=3_999) == ["old", "even later"]


@pytest.mark.parametrize("joined_ms", [999, 1_000])
def test_who_waits_alone_ages_like_any_other(joined_ms: int) -> None:
    queue = JobQueue(ageing_ms=1_000)
    queue.add(job("old", priority=4), now_ms=0)
    queue.age(joined_ms)
    queue.add(job("fresh", received_ms=joined_ms, device="e"), now_ms=joined_ms)
    queue.age(1_000)
    assert drained(queue, now_ms=1_000) == ["old", "fresh"]


def test_only_the_first_job_of_a_device_ages() -> None:
    queue = JobQueue(ageing_ms=1_000)
    for number in range(50):
        queue.add(job(f"A{number:02}", device="loud"), now_ms=0)
    for now_ms in range(1_000, 5_000, 1_000):
        queue.age(now_ms)
    queue.add(job("B", device="quiet"), now_ms=5_000)
    assert drained(queue, now_ms=5_000)[:2] == ["A00", "B"]


def test_nobody_waits_for_ever_however_much_is_more_important() -> None:
    """Two jobs come for each that can be done, all more urgent, each of a device of its own."""
    queue = JobQueue(ageing_ms=1_000)
    queue.add(job("least", priority=0, deadline_ms=10**9), now_ms=0)
    for turn in range(400):
        now_ms = turn * 100
        for number in range(2):
            name = f"{turn}-{number}"
            fresh = job(name, priority=9, deadline_ms=now_ms + 1_000, device=name)
            queue.add(fresh, now_ms=now_ms)
        queue.age(now_ms)
        first = next(queue.heads())[1]
        if first == "least":
            assert now_ms >= 9_000
            return
        queue.take(first, now_ms=now_ms)
    raise AssertionError("starved")
