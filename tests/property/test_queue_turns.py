"""The queue under any arrivals: each job is given out once, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.queue import JobQueue
from fleet_protocol.messages import DeviceId, JobId, JobKey, JobSubmit

AGEING_MS = 1_000
STEP_MS = 100

ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(["t1", "t2", "t3"]),
        st.integers(0, 4),
        st.integers(0, 9),
        st.sampled_from([None, 500, 5_000]),
        st.booleans(),
    ),
    max_size=60,
)


def job(key: str, device: str, priority: int, *, now_ms: int, deadline_ms: int | None) -> Job:
    return Job(
        key=JobKey(key),
        device=DeviceId(device),
        id=JobId(key),
        submit=JobSubmit(prompt="hello", priority=priority),
        received_at_ms=now_ms,
        deadline_at_ms=None if deadline_ms is None else now_ms + deadline_ms,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(arrivals=ARRIVALS, priority=st.integers(0, 9), fresh_priority=st.integers(0, 9))
def test_no_device_waits_longer_than_its_ageing_and_a_turn_of_each_other(
    arrivals: list[tuple[str, int, int, int | None, bool]], priority: int, fresh_priority: int
) -> None:
    """One job can be done at a time, and two fresh ones come meanwhile, of a device that floods."""
    queue, gone, added = JobQueue(AGEING_MS), set[str](), set[str]()
    tenants: dict[str, str] = {}
    for number, (tenant, device, level, deadline_ms, is_cancelled) in enumerate(arrivals):
        key = f"A{number:03}"
        each = job(key, f"{tenant}-d{device}", level, now_ms=0, deadline_ms=deadline_ms)
        queue.add(each, now_ms=0, tenant=tenant)
        tenants[each.device] = tenant
        if is_cancelled:
            queue.remove(each.key)
        else:
            added.add(key)
    queue.add(job("the one", "one", priority, now_ms=0, deadline_ms=None), now_ms=0, tenant="t1")
    flows = len(queue._flows)
    # It is of the highest priority by then, and each other device had one turn before it at most;
    # tenants take turns first, so those of its own tenant may count three times.
    latest = (9 - priority) * AGEING_MS // STEP_MS + 3 * (flows + 2) + 1
    for step in range(latest + 1):
        now_ms = step * STEP_MS
        for number in range(2):
            fresh = job(f"F{step}-{number}", "f", fresh_priority, now_ms=now_ms, deadline_ms=1)
            queue.add(fresh, now_ms=now_ms, tenant="t2")
        queue.age(now_ms)
        key = str(next(queue.heads())[1])
        assert key not in gone
        gone.add(key)
        queue.take(JobKey(key), now_ms=now_ms)
        if key == "the one":
            break
    assert "the one" in gone
    for fresh_key in list(queue._ready):
        if fresh_key.startswith("F"):
            queue.remove(fresh_key)
    while first := next(queue.heads(), None):
        assert first[1] not in gone
        gone.add(str(first[1]))
        queue.take(first[1], now_ms=0)
    assert added <= gone
    assert not queue._flows
    assert not queue._rising
    assert not queue._lanes
