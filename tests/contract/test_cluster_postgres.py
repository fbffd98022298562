"""What only PostgreSQL can show of several dispatchers: races, lost answers, an outage of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters.cluster_postgres import PostgresClusterStore
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.core.members import Figures, Member, MemberId
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.ports import StoreUnavailableError
from fleet_protocol import messages as m
from tests.contract.job_samples import cached, make_job
from tests.contract.relay import Relay
from tests.postgres_server import PostgresServer

SPEND = Spend(day=20, tenant="t", reason="complex", provider="p", model="m", cost_usd=0.25)
FRESH = Figures()


def named(url: str, name: str, **options: object) -> PostgresClusterStore:
    who = Member(id=MemberId(f"{name}-1"), name=name)
    return PostgresClusterStore(url, member=who, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def joined(
    url: str, *names: str, **options: object
) -> AsyncIterator[list[PostgresClusterStore]]:
    async with AsyncExitStack() as opened:
        stores = [named(url, name, **options) for name in names]
        # All at once: the first to come makes the tables.
        await asyncio.gather(*map(opened.enter_async_context, stores))
        for store in stores:
            await store.join()
        yield stores


def change(url: str, words: str) -> int:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(words.encode()).rowcount


def lapse(url: str, where: str) -> None:
    change(url, f"UPDATE members SET lease_until = now() - '1 s'::interval WHERE {where}")  # noqa: S608


async def test_a_commit_under_way_when_its_member_is_ended_saves_nothing(database: str) -> None:
    async with joined(database, "north", "south") as (north, south):
        job, other = make_job(), make_job()
        await north.commit([job])
        with psycopg.connect(database) as holder:
            holder.execute("SELECT FROM jobs FOR UPDATE")
            changes = [replace(job, attempt=1), other]
            saving = asyncio.create_task(north.commit(changes, [SPEND], [cached("a")]))
            await waits_for_a_lock(database)
            lapse(database, "id = 'north-1'")
            assert [member.name for member in await south.beat(FRESH)] == ["south"]
            holder.rollback()
        with pytest.raises(MemberFencedError):
            await saving
        assert await south.get(other.key) is None
        assert await south.spending(since_day=0) == []
        assert await south.adopt([], limit=9) == [job]


async def test_who_commits_at_this_moment_is_ended_with_the_next_beat(database: str) -> None:
    async with joined(database, "north", "south") as (north, south):
        with psycopg.connect(database) as committing:
            committing.execute("SELECT require_member('north-1')")
            lapse(database, "id = 'north-1'")
            async with asyncio.timeout(5):
                assert len(await south.beat(FRESH)) == 2
            committing.rollback()
        assert len(await south.beat(FRESH)) == 1
        with pytest.raises(MemberFencedError):
            await north.commit([make_job()])


async def waits_for_a_lock(url: str) -> None:
    words = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while not change(url, words):  # noqa: ASYNC110 - another process's doing
        await asyncio.sleep(0.01)


async def test_after_an_outage_of_the_database_nobody_is_over_at_once(database: str) -> None:
    async with joined(database, "north", "south", "west") as (north, south, west):
        lapse(database, "true")
        assert len(await north.beat(FRESH)) == 3
        assert len(await north.beat(FRESH)) == 3
        await south.commit([make_job()])
        assert len(await west.beat(FRESH)) == 3


async def test_a_clock_of_the_database_that_was_set_back_leaves_no_long_lease(
    database: str,
) -> None:
    long_lease = "lease_until > now() + lease + '1 s'::interval"
    async with joined(database, "north", "south") as (north, south):
        job = replace(make_job(), status=m.JobStatus.ASSIGNED, worker=m.WorkerId("w1"))
        await north.commit([job])
        change(database, "UPDATE members SET lease_until = lease_until + '1 h'::interval")
        await south.beat(FRESH)
        assert change(database, f"SELECT 1 FROM members WHERE {long_lease}") == 0  # noqa: S608
        lapse(database, "id = 'north-1'")
        await south.beat(FRESH)
        change(database, "UPDATE graves SET since = since + '1 h'::interval")
        assert await south.adopt([], limit=9) == [job]


async def test_what_was_given_in_an_answer_that_was_lost_is_given_again(
    postgres: PostgresServer, database: str
) -> None:
    with psycopg.connect(database) as conn:
        (name,) = conn.execute("SELECT current_database()").fetchone() or ("",)
    async with Relay(postgres.port) as relay, joined(database, "south") as (south,):
        far_url = postgres.tcp_url(str(name), port=relay.port)
        options = {"password": lambda: postgres.password}
        async with joined(far_url, "north", **options) as (north,):
            jobs, handed = [make_job() for _ in range(3)], make_job()
            await south.commit([*jobs, handed])
            assert await south.hand_over([handed.key], north.me)
            await loses_its_answer(relay, database, north.receive())
            assert await north.receive() == [handed]
            assert await north.receive() == []
            lapse(database, "id = 'south-1'")
            await north.beat(FRESH)
            await loses_its_answer(relay, database, north.adopt([], limit=9))
            assert set((await north.owners([job.key for job in jobs])).values()) == {north.me}
            assert await north.adopt([], limit=9) == jobs
            assert await north.adopt([], limit=9) == []
            await north.commit([replace(job, attempt=1) for job in (*jobs, handed)])


async def loses_its_answer(relay: Relay, database: str, call: Awaitable[object]) -> None:
    """Let a call be made whose answer is lost."""
    relay.swallow_answers()
    asking = asyncio.ensure_future(call)
    await relay.swallowed.wait()
    with psycopg.connect(database, autocommit=True) as conn:
        await nobody_works(conn)
    relay.cut()
    with pytest.raises(StoreUnavailableError):
        await asking


async def nobody_works(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    words = (
        "SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
        " AND datname = current_database() AND backend_type = 'client backend'"
    )
    while conn.execute(words).fetchone():  # noqa: ASYNC110 - another process's doing
        await asyncio.sleep(0.01)


async def test_of_several_who_adopt_at_once_each_finds_other_jobs(database: str) -> None:
    async with joined(database, "north", "south", "west", "east") as (north, *others):
        jobs = [make_job() for _ in range(300)]
        await north.commit(jobs)
        lapse(database, "id = 'north-1'")
        await others[0].beat(FRESH)

        async def adopt_all(member: PostgresClusterStore) -> list[m.JobKey]:
            found: list[m.JobKey] = []
            while taken := await member.adopt([], limit=20):
                found += [job.key for job in taken]
                await member.commit([replace(job, attempt=job.attempt + 1) for job in taken])
            return found

        shares = await asyncio.gather(*map(adopt_all, others))
        assert sorted(key for share in shares for key in share) == [job.key for job in jobs]


async def test_of_several_who_claim_a_name_at_once_one_has_it(database: str) -> None:
    names = [(m.DeviceId("d1"), m.JobId(f"j{number:02}")) for number in range(30)]
    async with joined(database, "north", "south", "west") as stores:
        for number in range(0, 30, 3):
            some = names[number : number + 3]
            granted = await asyncio.gather(
                *(
                    store.claim(some[::order])
                    for store, order in zip(stores, (1, -1, 1), strict=True)
                )
            )
            assert sorted(name for share in granted for name in share) == some


async def test_of_several_who_claim_workers_at_once_each_worker_has_one(database: str) -> None:
    workers = [m.WorkerId(f"w{number:02}") for number in range(30)]
    async with joined(database, "north", "south", "west") as stores:
        orders = (workers, workers[::-1], workers)
        pairs = zip(stores, orders, strict=True)
        granted = await asyncio.gather(*(s.claim_workers(order, most=20) for s, order in pairs))
        assert sum(map(len, granted)) == len(frozenset().union(*granted))
        for store, share in zip(stores, granted, strict=True):
            for worker in share:
                assert await stores[0].owner_of(worker) == store.me


async def test_members_who_commit_the_same_sums_and_answers_never_stand_in_each_others_way(
    database: str,
) -> None:
    spends = [replace(SPEND, tenant=tenant) for tenant in "abcdef"]
    kept = [cached(name) for name in "abcdef"]

    async def work(store: PostgresClusterStore, order: int) -> None:
        for _ in range(40):
            await store.commit([make_job()], spends[::order], kept[::order])

    async with joined(database, "north", "south") as (north, south), asyncio.timeout(60):
        await asyncio.gather(work(north, 1), work(south, -1))
        assert {spend.calls for spend in await north.spending(since_day=0)} == {80}


async def test_what_others_cache_counts_against_the_bound_after_a_while(database: str) -> None:
    async with joined(database, "north", "south", cache_mb=1) as (north, south):
        await north.commit([], [], [cached("a", chars=100)])
        for number in range(11):
            await south.commit([], [], [cached(chr(98 + number), chars=90_000, at_ms=9 + number)])
        await north.sweep_answers(until_before_ms=0)
        await north.commit([], [], [cached("z", chars=90_000, at_ms=99)])
        assert sum(row.size_bytes for row in await north.cache_usage()) <= 1_048_576
        assert list(await north.find_answers([b"a" * 32, b"z" * 32])) == [b"z" * 32]


async def test_a_dispatcher_on_its_own_and_members_keep_each_other_out(database: str) -> None:
    job = make_job()
    async with PostgresJobStore(database) as alone:
        await alone.commit([job])
        with pytest.raises(StoreUnavailableError, match="another dispatcher"):
            await named(database, "north").__aenter__()
    async with joined(database, "north", "south") as (north, south):
        with pytest.raises(StoreUnavailableError, match="another dispatcher"):
            await PostgresJobStore(database).__aenter__()
        assert await south.adopt([], limit=9) == [job]
        assert await north.adopt([], limit=9) == []
        step = replace(job, attempt=1)
        await south.commit([step])
    async with PostgresJobStore(database) as alone:
        assert await alone.load_open() == [step]
