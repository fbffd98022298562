"""Memory, SQLite and PostgreSQL hold the same after any turns: jobs, sums, cached answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cloud_dispatcher.adapters.store_memory import MemoryJobStore
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.ports import JobQuery, JobStore
from fleet_protocol import messages as m
from tests.contract.job_samples import cached, make_job

JOBS = 5
QUERIES = [
    JobQuery(limit=3),
    JobQuery(dead=True),
    JobQuery(device=m.DeviceId("d1"), limit=2),
    *(JobQuery(status=status) for status in m.JobStatus),
]
KEPT = m.LocalAnswer(text="half", model="m", confidence=0.5)

STEPS = {
    "assign": m.JobStatus.ASSIGNED,
    "run": m.JobStatus.RUNNING,
    "escalate": m.JobStatus.ESCALATED,
}
ENDS = {"ok": m.JobStatus.OK, "fail": m.JobStatus.FAILED, "cancel": m.JobStatus.CANCELLED}
moves = st.sampled_from([*STEPS, *ENDS, "keep", "forget", "detail", "tell", "again"])
spends = st.builds(
    Spend,
    day=st.integers(1, 3),
    tenant=st.sampled_from("st"),
    reason=st.just("complex"),
    provider=st.just("p"),
    model=st.sampled_from("mn"),
    key=st.sampled_from(["", "kitchen"]),
    calls=st.integers(0, 3),
    cost_usd=st.sampled_from([0.25, 0.5]),
)
answers = st.one_of(
    st.builds(cached, st.sampled_from("abc"), chars=st.integers(1, 50)),
    st.builds(c.UseAnswer, key=st.sampled_from([b"a" * 32, b"b" * 32]), at_ms=st.integers(6, 9)),
    st.just(c.ForgetAnswers()),
)
turns = st.tuples(
    st.lists(st.tuples(st.integers(0, JOBS - 1), moves), max_size=8),
    st.lists(spends, max_size=3),
    # What is not there yet is not used.
    st.lists(answers, max_size=3).map(
        lambda x: sorted(x, key=lambda y: isinstance(y, c.UseAnswer))
    ),
    st.sampled_from(["", "", "", "prune", "purge", "sweep", "load"]),
)


def moved(job: Job, move: str, now_ms: int) -> Job:
    """Return the job's next value. Of what has ended, only that it was told changes."""
    if not job.is_open:
        if move == "again":
            fresh = {"result": None, "told": False, "dead": False, "finished_at_ms": None}
            return replace(job, status=m.JobStatus.QUEUED, **fresh)
        return replace(job, told=True) if move == "tell" else job
    if move in STEPS:
        worker = m.WorkerId("w1")
        return replace(job, status=STEPS[move], attempt=job.attempt + 1, worker=worker)
    if move in ENDS:
        result = m.JobResult(id=job.id, status=ENDS[move], text=f"{now_ms}")
        ended = replace(job, status=ENDS[move], result=result, finished_at_ms=now_ms)
        return replace(ended, dead=move == "fail")
    if move == "detail":
        return replace(job, detail=f"at {now_ms}")
    return replace(job, kept=KEPT if move == "keep" else None)


async def held(store: JobStore, jobs: Sequence[Job]) -> list[Any]:
    """Return all that can be asked of a store."""
    names = [(job.device, job.id) for job in jobs]
    return [
        [await store.get(job.key) for job in jobs],
        await store.find(names),
        [await store.select(query) for query in QUERIES],
        await store.spending(since_day=2),
        await store.find_answers([b"a" * 32, b"b" * 32, b"c" * 32]),
        await store.cache_usage(),
        await store.recent_questions(limit=3),
    ]


async def tend(store: JobStore, chore: str, jobs: Sequence[Job], now_ms: int) -> Any:
    """Do what housekeeping and operators do; return what the store says."""
    match chore:
        case "prune":
            return await store.prune(finished_before_ms=now_ms, dead_before_ms=now_ms - 2, limit=2)
        case "purge":
            return [await store.purge(job.key) for job in jobs]
        case "sweep":
            return await store.sweep_answers(until_before_ms=now_ms * 10)
        case "load":
            return await store.load_open()
        case _:
            return None


async def play(stores: Sequence[JobStore], plan: Sequence[tuple[Any, ...]]) -> None:
    jobs = [make_job(device=f"d{number % 2}") for number in range(JOBS)]
    known: set[m.JobKey] = set()
    for now_ms, (steps, spent, changes, chore) in enumerate(plan, start=1):
        values: list[Job] = []
        for number, move in steps:
            jobs[number] = moved(jobs[number], move, now_ms)
            values.append(jobs[number])
        known |= {job.key for job in values}
        for store in stores:
            await store.commit(values, spent, changes)
        said = [await tend(store, chore, jobs, now_ms) for store in stores]
        assert said[1:] == said[:-1]
        for number, job in enumerate(jobs):
            if job.key in known and await stores[0].get(job.key) is None:
                # Forgotten: the dispatcher would know it as a new one.
                jobs[number] = make_job(device=job.device)
        first, *others = [await held(store, jobs) for store in stores]
        for other in others:
            assert other == first


@settings(
    max_examples=25,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # to shrink would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=st.lists(turns, min_size=1, max_size=12))
def test_all_stores_hold_the_same_after_any_turns(database: str, plan: list[Any]) -> None:
    async def run(path: Path) -> None:
        async with AsyncExitStack() as opened:
            stores: list[JobStore] = [
                MemoryJobStore(),
                SqliteJobStore(path, synchronous="normal"),
                PostgresJobStore(database, synchronous="normal"),
            ]
            for store in stores:
                await opened.enter_async_context(store)
            await play(stores, plan)

    with psycopg.connect(database, autocommit=True) as conn:
        if conn.execute("SELECT to_regclass('jobs')").fetchone() != (None,):
            conn.execute("TRUNCATE jobs, spending, cache")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "jobs.db"))
