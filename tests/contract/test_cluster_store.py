"""One suite for every `ClusterStore`: what is whose among several dispatchers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import psycopg
import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters.cluster_memory import MemoryCluster, MemoryClusterStore
from cloud_dispatcher.adapters.cluster_postgres import PostgresClusterStore
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import Figures, Member, MemberId
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.membership import ClusterStore, MemberFencedError
from fleet_protocol import messages as m
from tests.contract.job_samples import finished, make_job

SPEND = Spend(day=20, tenant="t", reason="complex", provider="p", model="m", cost_usd=0.25)
FRESH = Figures()


class Cluster(Protocol):
    """A database for members, and its clock."""

    def store(self, name: str, member: str) -> ClusterStore: ...
    def lapse(self, member: str) -> None: ...
    def age_graves(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._cluster = MemoryCluster(lambda: 100_000)

    def store(self, name: str, member: str) -> ClusterStore:
        return MemoryClusterStore(self._cluster, name=name, member=MemberId(member))

    def lapse(self, member: str) -> None:
        self._cluster.members[MemberId(member)].until_ms = 0

    def age_graves(self) -> None:
        self._cluster.graves = dict.fromkeys(self._cluster.graves, 0)


class OnPostgres:
    def __init__(self, url: str) -> None:
        self.url = url

    def store(self, name: str, member: str) -> ClusterStore:
        who = Member(id=MemberId(member), name=name)
        return PostgresClusterStore(self.url, member=who, lease_s=60)

    def lapse(self, member: str) -> None:
        long_ago = "lease_until = now() - '1 s'::interval"
        self.change(f"UPDATE members SET {long_ago} WHERE id = '{member}'")  # noqa: S608 - a test's

    def age_graves(self) -> None:
        self.change("UPDATE graves SET since = since - '1 h'::interval")

    def change(self, words: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(words.encode())


@pytest.fixture(params=["memory", "postgres"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "memory":
        return InMemory()
    return OnPostgres(request.getfixturevalue("database"))


@pytest.fixture
async def members(cluster: Cluster) -> AsyncIterator[Sequence[ClusterStore]]:
    """Three members: north, south and west."""
    async with AsyncExitStack() as opened:
        stores = []
        for name in ("north", "south", "west"):
            store = await opened.enter_async_context(cluster.store(name, f"{name}-1"))
            await store.join()
            stores.append(store)
        yield stores


async def end(cluster: Cluster, member: ClusterStore, finder: ClusterStore) -> None:
    """Let a member's lease run out, and another one find that."""
    cluster.lapse(member.me)
    await finder.beat(FRESH)


def worked_on_by(worker: str, **fields: object) -> Job:
    job = make_job(**fields)
    return replace(job, status=m.JobStatus.ASSIGNED, attempt=1, worker=m.WorkerId(worker))


# -------------------------------------------------------------------- who is there


async def test_members_know_each_other_by_age_with_their_figures(
    members: Sequence[ClusterStore],
) -> None:
    north, south, _ = members
    busy = Figures(waiting=3, room=-1, contexts={"": 2048}, summary=None)
    await south.beat(busy)
    told = await north.beat(FRESH)
    assert [(member.id, member.name) for member in told] == [
        ("north-1", "north"), ("south-1", "south"), ("west-1", "west"),
    ]  # fmt: skip
    assert told[1].figures == busy


async def test_who_leaves_is_a_member_no_more(members: Sequence[ClusterStore]) -> None:
    north, south, _ = members
    await south.leave()
    assert [member.name for member in await north.beat(FRESH)] == ["north", "west"]
    with pytest.raises(MemberFencedError):
        await south.beat(FRESH)


async def test_a_new_run_ends_the_earlier_one_of_its_name(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, _ = members
    await south.commit([make_job()])
    async with cluster.store("south", "south-2") as again:
        await again.join()
        told = await north.beat(FRESH)
        assert [member.id for member in told] == ["north-1", "west-1", "south-2"]
        with pytest.raises(MemberFencedError):
            await south.commit([make_job()])
        assert len(await again.adopt([], limit=9)) == 1


async def test_who_joins_once_more_is_the_same_member(members: Sequence[ClusterStore]) -> None:
    north, _, _ = members
    await north.join()
    await north.commit([make_job()])


async def test_nobody_is_over_while_its_lease_lasts(members: Sequence[ClusterStore]) -> None:
    north, south, _ = members
    for _ in range(3):
        assert len(await north.beat(FRESH)) == 3
    await south.commit([make_job()])


async def test_whose_lease_ran_out_can_do_nothing_any_more(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, _ = members
    job = make_job()
    await north.commit([job])
    await end(cluster, north, south)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: north.beat(FRESH),
        lambda: north.commit([make_job()], [SPEND]),
        lambda: north.commit([replace(job, attempt=1)]),
        lambda: north.claim([(m.DeviceId("d1"), m.JobId("x"))]),
        lambda: north.take(job.key),
        lambda: north.hand_over([job.key], south.me),
        north.receive,
        lambda: north.adopt([], limit=9),
        lambda: north.claim_workers([m.WorkerId("w1")], most=9),
        lambda: north.release_workers([m.WorkerId("w1")]),
    ]
    for call in calls:
        with pytest.raises(MemberFencedError) as caught:
            await call()
        assert caught.value.hint
    assert await south.get(job.key) == job
    assert await south.spending(since_day=0) == []
    assert await south.owners([job.key]) == {}


# -------------------------------------------------------------------- whose a job is


async def test_nothing_is_ours_at_the_start_and_what_we_save_is(
    members: Sequence[ClusterStore],
) -> None:
    north, south, _ = members
    job = make_job()
    await north.commit([job])
    assert await north.load_open() == await south.load_open() == []
    assert await south.owners([job.key, m.JobKey("none")]) == {job.key: north.me}
    assert await south.get(job.key) == job
    assert await south.find([(job.device, job.id)]) == {(job.device, job.id): job}


async def test_a_job_of_another_cannot_be_saved_and_nothing_else_with_it(
    members: Sequence[ClusterStore],
) -> None:
    north, south, _ = members
    job, other = make_job(), make_job()
    await north.commit([job])
    with pytest.raises(MemberFencedError):
        await south.commit([other, replace(job, attempt=7)], [SPEND])
    assert await north.get(job.key) == job
    assert await north.get(other.key) is None
    assert await north.spending(since_day=0) == []


async def test_all_steps_of_a_job_of_ours_are_saved(members: Sequence[ClusterStore]) -> None:
    north, _, _ = members
    job = make_job()
    steps = [
        job,
        replace(job, status=m.JobStatus.ASSIGNED, attempt=1, worker=m.WorkerId("w1")),
        finished(job, told=False, attempt=1),
        finished(job, told=True, attempt=1),
    ]
    for step in steps:
        await north.commit([step, make_job()], [SPEND])
        assert await north.get(job.key) == step
    await north.commit([], [SPEND])
    assert [spend.calls for spend in await north.spending(since_day=0)] == [5]


async def test_one_name_has_one_job_whoever_saves_it(members: Sequence[ClusterStore]) -> None:
    north, south, _ = members
    job = make_job()
    await north.commit([job])
    with pytest.raises(MemberFencedError):
        await south.commit([make_job(device=job.device, id=job.id)])
    assert await south.find([(job.device, job.id)]) == {(job.device, job.id): job}


async def test_a_name_is_held_by_one_until_it_lets_go_or_is_over(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, _ = members
    one, two, three = ((m.DeviceId("d1"), m.JobId(f"j{n}")) for n in (1, 2, 3))
    assert await north.claim([one, two]) == {one, two}
    assert await north.claim([one]) == {one}
    assert await south.claim([one, two, three]) == {three}
    assert await north.claim([], release=[one, three]) == frozenset()
    assert await south.claim([one, two]) == {one}
    await end(cluster, north, south)
    assert await south.claim([two]) == {two}


async def test_a_finished_job_is_taken_from_whoever_is_gone_only(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, west = members
    done, untold, still = finished(make_job()), finished(make_job(), told=False), make_job()
    await north.commit([done, untold, still])
    assert not await south.take(done.key)
    assert await north.take(done.key)
    await end(cluster, north, south)
    assert not await south.take(untold.key)
    assert not await south.take(still.key)
    assert not await south.take(m.JobKey("none"))
    assert await south.take(done.key)
    assert not await west.take(done.key)
    again = replace(done, result=None, told=False, finished_at_ms=None, status=m.JobStatus.QUEUED)
    await south.commit([again])
    assert await south.get(done.key) == again


# -------------------------------------------------------------------- jobs change hands


async def test_a_job_that_is_handed_over_is_received_once_and_is_the_takers(
    members: Sequence[ClusterStore],
) -> None:
    north, south, west = members
    jobs = [make_job() for _ in range(3)]
    await north.commit(jobs)
    assert await north.hand_over([jobs[2].key, jobs[0].key], south.me)
    assert await west.receive() == []
    assert await south.receive() == [jobs[0], jobs[2]]
    assert await south.receive() == []
    assert await north.owners([job.key for job in jobs]) == {
        jobs[0].key: south.me, jobs[1].key: north.me, jobs[2].key: south.me,
    }  # fmt: skip
    with pytest.raises(MemberFencedError):
        await north.commit([replace(jobs[0], attempt=1)])
    step = replace(jobs[0], attempt=1)
    await south.commit([step])
    assert await north.get(step.key) == step


async def test_nothing_is_handed_over_to_who_is_gone(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, _ = members
    job = make_job()
    await north.commit([job])
    await end(cluster, south, north)
    assert not await north.hand_over([job.key], south.me)
    await north.commit([replace(job, attempt=1)])


async def test_a_job_can_be_handed_on(members: Sequence[ClusterStore]) -> None:
    north, south, west = members
    job = make_job()
    await north.commit([job])
    assert await north.hand_over([job.key], south.me)
    assert await south.receive() == [job]
    assert await south.hand_over([job.key], west.me)
    assert await south.receive() == []
    assert await west.receive() == [job]
    assert await west.hand_over([job.key], north.me)
    assert await north.receive() == [job]
    await north.commit([replace(job, attempt=1)])


async def test_what_was_handed_to_who_is_over_before_it_looked_has_an_heir(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, west = members
    job = make_job()
    await north.commit([job])
    await north.hand_over([job.key], south.me)
    await end(cluster, south, west)
    assert await west.adopt([], limit=9) == [job]
    assert await west.receive() == []


# -------------------------------------------------------------------- what the dead leave


async def test_jobs_of_who_is_over_are_adopted_each_by_one_oldest_first(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, west = members
    jobs = [make_job() for _ in range(7)]
    outbox, told = finished(make_job(), told=False), finished(make_job())
    await north.commit([*jobs, outbox, told])
    assert await south.adopt([], limit=9) == []
    await end(cluster, north, south)
    first = await south.adopt([], limit=5)
    rest = await west.adopt([], limit=5)
    assert (first, rest) == (jobs[:5], [*jobs[5:], outbox])
    assert await south.adopt([], limit=5) == await west.adopt([], limit=5) == []
    await south.commit([replace(jobs[0], attempt=1)])
    with pytest.raises(MemberFencedError):
        await west.commit([replace(jobs[1], attempt=1)])


async def test_what_a_worker_works_on_goes_to_who_gets_the_worker_for_a_while(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, west = members
    waiting, on_w1, on_w2, on_w3 = make_job(), *map(worked_on_by, ("w1", "w2", "w3"))
    await north.commit([waiting, on_w1, on_w2, on_w3])
    await end(cluster, north, south)
    assert await south.adopt([m.WorkerId("w2")], limit=1) == [on_w2]
    assert await south.adopt([m.WorkerId("w2")], limit=9) == [waiting]
    assert await west.adopt([m.WorkerId("w1")], limit=9) == [on_w1]
    assert await south.adopt([m.WorkerId("w2")], limit=9) == []
    cluster.age_graves()
    assert await south.adopt([m.WorkerId("w2")], limit=9) == [on_w3]


async def test_a_job_comes_with_its_parts(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, west = members
    whole, other = make_job(), make_job()
    parts = [
        replace(
            worked_on_by("w9", key=f"{whole.key}-{n}", device=whole.device, id=f"{whole.id}-{n}"),
            part=PART.part and replace(PART.part, job=whole.key),
        )
        for n in range(3)
    ]
    done = finished(parts[1], told=False)
    await north.commit([whole, other, parts[0], done, parts[2]])
    await end(cluster, north, south)
    assert await south.adopt([], limit=1) == [whole, parts[0], done, parts[2]]
    assert await west.adopt([], limit=1) == [other]


PART = make_job(part={"job": "whole", "round": 0, "start": 0, "end": 9})


async def test_who_is_over_a_second_time_leaves_again(
    cluster: Cluster, members: Sequence[ClusterStore]
) -> None:
    north, south, west = members
    first, second = make_job(), make_job()
    await north.commit([first])
    await end(cluster, north, south)
    assert await south.adopt([], limit=9) == [first]
    await south.commit([second])
    await end(cluster, south, west)
    assert await west.adopt([], limit=9) == [first, second]


# -------------------------------------------------------------------- whose a worker is


async def test_a_worker_is_one_members(cluster: Cluster, members: Sequence[ClusterStore]) -> None:
    north, south, _ = members
    w1, w2, w3 = map(m.WorkerId, ("w1", "w2", "w3"))
    assert await north.claim_workers([w1, w2], most=9) == {w1, w2}
    assert await south.claim_workers([w1, w2, w3], most=9) == {w3}
    assert (await north.owner_of(w3), await north.owner_of(m.WorkerId("w4"))) == (south.me, None)
    await north.release_workers([w1, w3])
    assert await south.owner_of(w3) == south.me
    assert await south.claim_workers([w1, w2], most=9) == {w1}
    await end(cluster, north, south)
    assert await south.claim_workers([w2], most=9) == {w2}


async def test_no_more_workers_than_wanted_and_the_first_named_first(
    members: Sequence[ClusterStore],
) -> None:
    north, south, _ = members
    names = [m.WorkerId(name) for name in ("w5", "w2", "w4", "w1")]
    assert await north.claim_workers(names, most=0) == frozenset()
    assert await north.claim_workers(names, most=2) == {"w5", "w2"}
    assert await south.claim_workers(names, most=1) == {"w4"}
