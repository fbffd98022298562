"""How every `JobStore` lists jobs, page by page; then what it costs in a large file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters import store_postgres, store_sqlite
from cloud_dispatcher.adapters.connection_postgres import Conn
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.ports import JobPage, JobQuery, JobStore
from fleet_protocol import messages as m
from tests.contract.job_samples import finished, listed, make_job
from tests.contract.test_job_store import STORES, make_store

INDEXED = ("untold", "trouble")
"""Jobs of which there are few: indexes of their keys alone."""
W1, W2 = m.WorkerId("w1"), m.WorkerId("w2")


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    async with make_store(request, tmp_path, cache_mb=64) as found:
        yield found


def answered(job: Job, *, by: m.AnsweredBy, worker: str | None = None, **fields: object) -> Job:
    done = finished(job)
    assert done.result is not None
    result = replace(done.result, answered_by=by, worker=worker, **fields)
    return replace(done, result=result)


def broken(job: Job, code: str) -> Job:
    done = finished(job, status=m.JobStatus.FAILED, dead=True)
    assert done.result is not None
    return replace(done, result=replace(done.result, code=code))


async def test_jobs_are_found_by_what_only_their_results_say(store: JobStore) -> None:
    edge = answered(make_job(id="Lamp-7"), by=m.AnsweredBy.EDGE, worker="w1")
    cloud = answered(make_job(device="d2"), by=m.AnsweredBy.CLOUD, reason=m.Reason.TOO_LONG)
    failed = broken(make_job(id="pump"), "attempts_exhausted")
    running = make_job(status=m.JobStatus.RUNNING, worker="w1")
    escalated = make_job(status=m.JobStatus.ESCALATED, device="d2")
    waiting = make_job()
    await store.commit([edge, cloud, failed, running, escalated, waiting])
    for query, expected in [
        (JobQuery(worker=W1), [running, edge]),
        (JobQuery(worker=W2), []),
        (JobQuery(route=m.AnsweredBy.EDGE), [running, edge]),
        (JobQuery(route=m.AnsweredBy.CLOUD), [escalated, cloud]),
        (JobQuery(route=m.AnsweredBy.OFFLINE), []),
        (JobQuery(code="attempts_exhausted"), [failed]),
        (JobQuery(code="too_long"), [cloud]),
        (JobQuery(text="lAMP"), [edge]),
        (JobQuery(text=failed.key[-5:].lower()), [failed]),
        (JobQuery(belongs=lambda device: device == "d2"), [escalated, cloud]),
        (JobQuery(worker=W1, status=m.JobStatus.OK), [edge]),
        (JobQuery(worker=W1, status=m.JobStatus.RUNNING), [running]),
        (JobQuery(route=m.AnsweredBy.CLOUD, device=m.DeviceId("d1")), []),
        (JobQuery(code="attempts_exhausted", dead=True, text="pump"), [failed]),
        (JobQuery(text="%"), []),
        (JobQuery(text="_"), []),
    ]:
        page = await store.select(query)
        assert (list(page.jobs), page.go_on) == (expected, None), query


@pytest.mark.parametrize("looked_at", [False, True])
async def test_pages_in_both_directions_have_every_job_once(
    store: JobStore, *, looked_at: bool
) -> None:
    jobs = [answered(make_job(), by=m.AnsweredBy.EDGE, worker="w1") for _ in range(7)]
    others = [finished(make_job()) for _ in range(2)] if looked_at else []
    await store.commit([*jobs, *others])
    query = JobQuery(limit=3, worker=W1 if looked_at else None)
    down: list[JobPage] = [await store.select(query)]
    while (go_on := down[-1].go_on) is not None:
        down.append(await store.select(replace(query, before=go_on)))
    assert [len(page.jobs) for page in down] == [3, 3, 1]
    assert [job for page in down for job in page.jobs] == jobs[::-1]
    up = [await store.select(replace(query, after=jobs[0].key, upwards=True))]
    while (go_on := up[-1].go_on) is not None:
        up.append(await store.select(replace(query, after=go_on, upwards=True)))
    assert [list(page.jobs) for page in up] == [jobs[3:0:-1], jobs[6:3:-1]]


async def test_a_page_that_is_just_full_says_that_there_is_no_other(store: JobStore) -> None:
    jobs = [answered(make_job(), by=m.AnsweredBy.EDGE) for _ in range(3)]
    await store.commit(jobs)
    for query in (JobQuery(limit=3), JobQuery(limit=3, route=m.AnsweredBy.EDGE)):
        assert (await store.select(query)).go_on is None


async def test_a_span_of_keys_is_kept_to_in_both_directions(store: JobStore) -> None:
    jobs = [make_job() for _ in range(5)]
    await store.commit(jobs)
    span = JobQuery(after=jobs[0].key, before=jobs[4].key)
    assert await listed(store, span) == jobs[3:0:-1]
    assert await listed(store, replace(span, limit=2)) == [jobs[3], jobs[2]]
    assert await listed(store, replace(span, limit=2, upwards=True)) == [jobs[2], jobs[1]]
    assert await listed(store, replace(span, text="job")) == jobs[3:0:-1]


async def test_looking_ends_after_so_many_jobs_and_goes_on_from_there(store: JobStore) -> None:
    rare = answered(make_job(), by=m.AnsweredBy.OFFLINE)
    jobs = [answered(make_job(), by=m.AnsweredBy.EDGE) for _ in range(6)]
    await store.commit([rare, *jobs])
    query = JobQuery(route=m.AnsweredBy.OFFLINE, looks=4)
    first = await store.select(query)
    assert (first.jobs, first.go_on) == ((), jobs[2].key)
    second = await store.select(replace(query, before=first.go_on))
    assert (list(second.jobs), second.go_on) == ([rare], None)


async def test_jobs_are_listed_by_their_keys_whatever_became_of_them(store: JobStore) -> None:
    jobs = [make_job(), finished(make_job()), broken(make_job(), "x")]
    await store.commit([*jobs, make_job()])
    keys = (jobs[0].key, m.JobKey("none"), jobs[2].key, jobs[1].key)
    page = await store.select(JobQuery(keys=keys, status=m.JobStatus.QUEUED))
    assert (list(page.jobs), page.go_on) == (jobs[::-1], None)


async def test_more_jobs_than_are_read_at_once_are_looked_at(store: JobStore) -> None:
    first, last = make_job(id="first"), make_job(id="last")
    await store.commit([first, *(make_job() for _ in range(2_500)), replace(last, key="01J9")])
    assert await listed(store, JobQuery(text="first", limit=1)) == [first]
    up = JobQuery(text="last", after=m.JobKey("0"), upwards=True, limit=1)
    assert await listed(store, up) == [replace(last, key="01J9")]


# -------------------------------------------------------------------- what it costs


PLAIN_LISTS = [
    JobQuery(),
    JobQuery(before=m.JobKey("01J5")),
    JobQuery(after=m.JobKey("01J5"), upwards=True),
    JobQuery(after=m.JobKey("01J3"), before=m.JobKey("01J5")),
    JobQuery(status=m.JobStatus.QUEUED),
    JobQuery(status=m.JobStatus.FAILED, before=m.JobKey("01J5")),
    JobQuery(dead=True),
    JobQuery(device=m.DeviceId("d1")),
    JobQuery(keys=(m.JobKey("01J5"), m.JobKey("01J6"))),
    JobQuery(worker=W1),
    JobQuery(worker=W1, before=m.JobKey("01J5")),
]


async def test_the_jobs_of_a_device_are_never_sorted_if_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_sqlite, "_MANY", 3)
    asked: list[str] = []
    path = tmp_path / "jobs.db"
    jobs = [make_job(device="d1" if number % 4 else "d2") for number in range(8)]
    async with SqliteJobStore(path) as store:
        await store.commit(jobs)
        await store._reader.run(lambda conn: conn.set_trace_callback(asked.append))
        query = JobQuery(device=m.DeviceId("d1"), limit=2)
        assert await listed(store, query) == [jobs[7], jobs[6]]
        assert await listed(store, replace(query, before=jobs[5].key)) == [jobs[3], jobs[2]]
        assert await listed(store, replace(query, device=m.DeviceId("d2"))) == [jobs[4], jobs[0]]
    with closing(sqlite3.connect(path)) as conn:
        plans = [str(conn.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()) for sql in asked]
    assert [("ORDER BY" in plan) for plan in plans if " p " in plan] == [False, False, True]


@pytest.mark.parametrize("query", PLAIN_LISTS, ids=str)
async def test_sqlite_reads_no_more_of_a_large_file_than_a_page(
    query: JobQuery, tmp_path: Path
) -> None:
    """What it really runs walks along the keys, or an index, from where the page begins."""
    asked: list[str] = []
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path) as store:
        await store._reader.run(lambda conn: conn.set_trace_callback(asked.append))
        await store.select(query)
    with closing(sqlite3.connect(path)) as conn:
        plans = [
            [str(row[3]) for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}")] for sql in asked
        ]
    assert plans
    for plan in plans:
        # The keys are the order of the table: to walk along them is no scan of all of it, for
        # it ends with the page; to sort would be to read all of it first.
        known = ("json_each", "subquery")
        scans = [step for step in plan if step.startswith("SCAN")]
        whole = [step for step in scans if not any(word in step for word in known)]
        assert set(whole) <= {"SCAN j", *(f"SCAN j USING INDEX jobs_{of}" for of in INDEXED)}, plan
        sorts = [step for step in plan if "ORDER BY" in step]
        assert not sorts or query.device is not None or query.keys is not None, plan


@pytest.mark.parametrize("query", [x for x in PLAIN_LISTS if x.device is None], ids=str)
async def test_postgresql_reads_no_more_of_a_large_table_than_a_page(
    query: JobQuery, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is an index that has the order: the whole table need be neither read nor sorted."""
    asked: list[tuple[str, Any]] = []
    rows = store_postgres._rows

    async def noted(conn: Conn, text: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        asked.append((text, values))
        return await rows(conn, text, values)

    monkeypatch.setattr(store_postgres, "_rows", noted)
    async with PostgresJobStore(database) as store:
        await store.select(query)
    with psycopg.connect(database) as conn:
        # A table as small as this one would be read whole in any case.
        conn.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        plans = ["\n".join(str(row[0]) for row in conn.execute(f"EXPLAIN {text}", values))
                 for text, values in asked]  # fmt: skip
    assert plans
    for plan in plans:
        assert "Seq Scan" not in plan, plan
        assert "Sort" not in plan or query.keys is not None, plan
