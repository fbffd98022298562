"""One suite for every `JobStore`; then what only a file can show."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters import name_filter
from cloud_dispatcher.adapters.job_rows import PLAIN
from cloud_dispatcher.adapters.schema_sqlite import statements
from cloud_dispatcher.adapters.sealed_blobs import SealedBlobs
from cloud_dispatcher.adapters.store_memory import MemoryJobStore
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore, probe
from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.ports import JobQuery, JobStore, StoreUnavailableError
from fleet_pki.sealing import new_key
from fleet_protocol import messages as m
from fleet_protocol.errors import ConfigError
from tests.contract.job_samples import FULL, cached, finished, listed, make_job

STORES = ["memory", "sqlite", "postgres", "sqlite sealed", "postgres sealed"]


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    async with make_store(request, tmp_path, cache_mb=64) as found:
        yield found


@pytest.fixture(params=STORES)
async def bounded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    """A store with room for one megabyte of cached answers."""
    async with make_store(request, tmp_path, cache_mb=1) as found:
        yield found


def make_store(request: pytest.FixtureRequest, folder: Path, *, cache_mb: int) -> JobStore:
    if request.param == "memory":
        return MemoryJobStore(cache_mb=cache_mb)
    kind, _, sealed = request.param.partition(" ")
    blobs = SealedBlobs(key_file(folder)) if sealed else PLAIN
    if kind == "sqlite":
        return SqliteJobStore(folder / "jobs.db", cache_mb=cache_mb, blobs=blobs)
    return PostgresJobStore(request.getfixturevalue("database"), cache_mb=cache_mb, blobs=blobs)


def key_file(folder: Path, *keys: str) -> Path:
    path = folder / "store.key"
    path.write_text("\n".join(keys or (new_key(),)))
    path.chmod(0o600)
    return path


async def test_every_field_of_a_job_comes_back_as_it_was_saved(store: JobStore) -> None:
    defaults = make_job()
    await store.commit([FULL, defaults])
    assert await store.get(FULL.key) == FULL
    assert await store.get(defaults.key) == defaults
    assert all(
        getattr(FULL, field.name) != field.default
        for field in msgspec.structs.fields(Job)
        if not field.required
    ), "the full job must leave no field at its default, or a forgotten column goes unseen"


async def test_the_form_of_an_answer_is_saved_with_its_properties_in_order(store: JobStore) -> None:
    schema = {"properties": {"b": {"type": "number"}, "a": {"enum": [1.5, None, "关"]}}}
    job = make_job(submit=m.JobSubmit(prompt="x", output=m.OutputFormat(json_schema=schema)))
    await store.commit([job])
    again = await store.get(job.key)
    assert again == job
    assert again is not None
    assert again.submit.output is not None
    assert msgspec.json.encode(again.submit.output.json_schema) == msgspec.json.encode(schema)


async def test_a_saved_step_replaces_the_value_before_it(store: JobStore) -> None:
    job = make_job()
    steps = [
        job,
        replace(job, status=m.JobStatus.ASSIGNED, attempt=1, worker="w1", assigned_at_ms=5),
        replace(job, status=m.JobStatus.RUNNING, attempt=2, worker="w2", lapsed=True),
        replace(job, status=m.JobStatus.ESCALATED, attempt=3, kept=FULL.kept),
        finished(job, told=False, attempt=3, kept=FULL.kept),
        finished(job, told=True, attempt=3, kept=FULL.kept),
    ]
    for step in steps:
        await store.commit([step])
        assert await store.get(job.key) == step


async def test_several_values_of_one_job_in_one_commit_end_with_the_last(store: JobStore) -> None:
    job = make_job()
    await store.commit([job, replace(job, attempt=1), finished(job, told=False)])
    assert await store.get(job.key) == finished(job, told=False)


async def test_a_dead_letter_that_starts_over_has_no_result_and_is_open_again(
    store: JobStore,
) -> None:
    job = make_job()
    dead = finished(job, status=m.JobStatus.FAILED, dead=True, kept=FULL.kept)
    await store.commit([job])
    await store.commit([dead])
    again = replace(job, attempt=4, deadline_at_ms=9_000)
    await store.commit([again])
    assert await store.get(job.key) == again
    assert await store.load_open() == [again]
    assert await listed(store, JobQuery(dead=True)) == []


async def test_a_dead_letter_may_have_an_answer(store: JobStore) -> None:
    job = make_job()
    await store.commit([job])
    dead = finished(job, told=False, dead=True)
    await store.commit([dead])
    assert await store.get(job.key) == dead
    assert await listed(store, JobQuery(dead=True)) == [dead]


async def test_jobs_are_found_by_their_devices_names_open_or_finished(store: JobStore) -> None:
    mine, done = make_job(), finished(make_job())
    other = make_job(device="d2", id=mine.id)
    await store.commit([mine, done, other])
    names = [(mine.device, mine.id), (done.device, done.id), (mine.device, m.JobId("none"))]
    assert await store.find(names) == {names[0]: mine, names[1]: done}
    assert await store.find([]) == {}


async def test_an_unknown_key_is_no_job(store: JobStore) -> None:
    assert await store.get(m.JobKey("01J0")) is None


async def test_open_jobs_and_untold_results_are_loaded_oldest_first(store: JobStore) -> None:
    open_job, outbox, told = make_job(), finished(make_job(), told=False), finished(make_job())
    await store.commit([told, outbox, open_job])
    assert await store.load_open() == [open_job, outbox]


async def test_lists_are_newest_first_and_filtered(store: JobStore) -> None:
    queued = make_job()
    running = make_job(status=m.JobStatus.RUNNING, device="d2")
    ok = finished(make_job())
    failed = finished(make_job(), status=m.JobStatus.FAILED, dead=True)
    cancelled = finished(make_job(), status=m.JobStatus.CANCELLED)
    await store.commit([queued, running, ok, failed, cancelled])
    for query, expected in [
        (JobQuery(), [cancelled, failed, ok, running, queued]),
        (JobQuery(limit=2), [cancelled, failed]),
        (JobQuery(limit=2, before=failed.key), [ok, running]),
        (JobQuery(device=m.DeviceId("d2"), before=running.key), []),
        (JobQuery(status=m.JobStatus.QUEUED), [queued]),
        (JobQuery(status=m.JobStatus.OK), [ok]),
        (JobQuery(status=m.JobStatus.FAILED), [failed]),
        (JobQuery(device=m.DeviceId("d2")), [running]),
        (JobQuery(dead=True), [failed]),
        (JobQuery(dead=True, status=m.JobStatus.EXPIRED), []),
    ]:
        assert await listed(store, query) == expected, query


def dead_letter(at_ms: int, *, told: bool = True) -> Job:
    return finished(make_job(), at_ms=at_ms, told=told, status=m.JobStatus.FAILED, dead=True)


async def prune(
    store: JobStore, before_ms: int, *, dead_before_ms: int = 0, limit: int = 10
) -> int:
    return await store.prune(
        finished_before_ms=before_ms, dead_before_ms=dead_before_ms, limit=limit
    )


async def test_pruning_takes_the_oldest_told_results_and_nothing_else(store: JobStore) -> None:
    oldest, old, young = (finished(make_job(), at_ms=at_ms) for at_ms in (100, 200, 300))
    untold, still_open = finished(make_job(), at_ms=50, told=False), make_job()
    await store.commit([young, old, oldest, untold, still_open])
    assert await prune(store, 300, limit=1) == 1
    assert await store.get(oldest.key) is None
    assert await prune(store, 300) == 1
    assert await prune(store, 300) == 0
    assert await listed(store) == [still_open, untold, young]
    assert await store.find([(old.device, old.id)]) == {}
    await store.commit([replace(old, key=make_job().key, result=None, told=False)])


async def test_dead_letters_are_pruned_by_a_limit_of_their_own(store: JobStore) -> None:
    dead, young_dead, untold = dead_letter(100), dead_letter(200), dead_letter(100, told=False)
    ok, answered = finished(make_job(), at_ms=100), finished(make_job(), at_ms=150, dead=True)
    await store.commit([dead, young_dead, untold, ok, answered])
    assert await prune(store, 1_000) == 1
    assert await store.get(ok.key) is None
    assert await prune(store, 0, dead_before_ms=200, limit=1) == 1
    assert await listed(store) == [answered, untold, young_dead]
    assert await prune(store, 0, dead_before_ms=200) == 1
    assert await listed(store) == [untold, young_dead]


async def test_one_limit_holds_for_all_that_is_pruned_at_once(store: JobStore) -> None:
    jobs = [finished(make_job(), at_ms=100, dead=number % 2 == 0) for number in range(6)]
    await store.commit(jobs)
    assert await prune(store, 200, dead_before_ms=200, limit=4) == 4
    assert await prune(store, 200, dead_before_ms=200, limit=4) == 2
    assert await listed(store) == []


async def test_to_give_space_back_takes_no_job(store: JobStore) -> None:
    kept = [finished(make_job(), at_ms=9_000), make_job()]
    await store.commit(kept)
    assert await store.give_back(most_bytes=1_000_000) == 0
    assert await listed(store) == kept[::-1]


async def test_only_a_dead_letter_that_was_told_is_purged(store: JobStore) -> None:
    dead = finished(make_job(), status=m.JobStatus.FAILED, dead=True)
    untold = finished(make_job(), status=m.JobStatus.FAILED, dead=True, told=False)
    others = [finished(make_job()), untold, make_job()]
    await store.commit([dead, *others])
    assert [await store.purge(job.key) for job in others] == [False] * 3
    assert await store.purge(dead.key)
    assert not await store.purge(dead.key)
    assert await store.get(dead.key) is None
    assert len(await listed(store)) == 3
    again = replace(dead, key=make_job().key, result=None, dead=False, told=False)
    await store.commit([again])
    assert await store.find([(dead.device, dead.id)]) == {(dead.device, dead.id): again}


async def test_a_failed_commit_leaves_nothing_and_works_later(store: JobStore) -> None:
    job, big = make_job(), make_job(submit=m.JobSubmit(prompt="x" * 400_000))
    await store.commit([job])
    await fill_up(store)
    step = replace(job, status=m.JobStatus.RUNNING, attempt=1)
    with pytest.raises(StoreUnavailableError) as caught:
        await store.commit([step, big])
    assert "space" in caught.value.hint
    assert await store.get(job.key) == job
    assert await store.get(big.key) is None
    await free_up(store)
    await store.commit([step, big])
    assert await store.load_open() == [step, big]


async def fill_up(store: JobStore) -> None:
    """Let the disk be full: SQLite's own limit gives that error, PostgreSQL is made to say so."""
    if isinstance(store, MemoryJobStore):
        store.failures = 1
    elif isinstance(store, SqliteJobStore):
        await limit_pages(store, 20)
    else:
        await change(store, FULL_DISK)


async def free_up(store: JobStore) -> None:
    if isinstance(store, SqliteJobStore):
        await limit_pages(store, 1_000_000)
    elif isinstance(store, PostgresJobStore):
        await change(store, "DROP TRIGGER full_disk ON jobs")


FULL_DISK = """
CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk AFTER INSERT OR UPDATE ON jobs EXECUTE FUNCTION full_disk()
"""


async def change(store: JobStore, words: str) -> None:
    assert isinstance(store, PostgresJobStore)
    await store._others.run(lambda conn: conn.execute(words.encode()))


async def limit_pages(store: SqliteJobStore, pages: int) -> None:
    pragma = f"PRAGMA max_page_count = {pages}"
    await store._writer.run(lambda conn: conn.execute(pragma).fetchone())


async def test_spending_is_added_up_by_day_and_purpose(store: JobStore) -> None:
    today = Spend(day=20, tenant="t", reason="complex", provider="p", model="m", cost_usd=0.25)
    other = replace(today, tenant="u", prompt_tokens=7)
    await store.commit([], [replace(today, day=19), today])
    keyed = replace(today, key="kitchen")
    await store.commit([make_job()], [other, today, keyed, keyed])
    assert await store.spending(since_day=20) == [
        replace(today, calls=2, cost_usd=0.5),
        replace(keyed, calls=2, cost_usd=0.5),
        other,
    ]
    assert len(await store.spending(since_day=0)) == 4


# -------------------------------------------------------------------- only a file can show these


async def test_spending_survives_and_a_failed_commit_adds_nothing(tmp_path: Path) -> None:
    spend = Spend(day=20, tenant="t", reason="complex", provider="p", model="m", cost_usd=0.25)
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        await store.commit([], [spend])
        await limit_pages(store, 1)
        with pytest.raises(StoreUnavailableError):
            await store.commit([make_job(submit=m.JobSubmit(prompt="x" * 50_000))], [spend])
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        assert await store.spending(since_day=0) == [spend]


async def test_a_cached_answer_comes_back_as_it_was_kept(store: JobStore) -> None:
    await store.commit([], [], [cached("a"), cached("a", chars=20), cached("b")])
    keys = [name * 32 for name in (b"a", b"b", b"c")]
    found = await store.find_answers(keys)
    assert found == {keys[0]: cached("a", chars=20).answer, keys[1]: cached("b").answer}


async def test_cached_answers_go_when_their_time_is_over(store: JobStore) -> None:
    await store.commit([], [], [cached("a", until_at_ms=10), cached("b", until_at_ms=11)])
    assert await store.sweep_answers(until_before_ms=10) == 1
    assert list(await store.find_answers([b"a" * 32, b"b" * 32])) == [b"b" * 32]


async def test_the_cached_answers_not_used_for_longest_make_room(bounded: JobStore) -> None:
    names = [chr(ord("a") + number) for number in range(12)]
    for at_ms, name in enumerate(names):
        await bounded.commit([], [], [cached(name, chars=80_000, at_ms=at_ms)])
    await bounded.commit([], [], [c.UseAnswer(key=b"a" * 32, at_ms=50)])
    for at_ms, name in enumerate("xyz", start=60):
        await bounded.commit([], [], [cached(name, chars=80_000, at_ms=at_ms)])
    found = await bounded.find_answers([name.encode() * 32 for name in [*names, *"xyz"]])
    assert sum(answer.size_bytes for answer in found.values()) <= 1_048_576
    assert {b"a" * 32, b"x" * 32, b"y" * 32, b"z" * 32} <= set(found)
    assert b"b" * 32 not in found


async def test_an_answer_beyond_the_whole_bound_pushes_nothing_out(bounded: JobStore) -> None:
    await bounded.commit([], [], [cached("a")])
    await bounded.commit([], [], [cached("b", chars=2_000_000)])
    assert list(await bounded.find_answers([b"a" * 32, b"b" * 32])) == [b"a" * 32]


async def test_cached_answers_survive_and_count_against_the_bound_again(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path, cache_mb=1) as store:
        await store.commit([], [], [cached(name, chars=200_000, at_ms=1) for name in "abc"])
    async with SqliteJobStore(path, cache_mb=1) as store:
        await store.commit([], [], [cached(name, chars=200_000, at_ms=2) for name in "xyz"])
        found = await store.find_answers([name.encode() * 32 for name in "abcxyz"])
        assert {b"x" * 32, b"y" * 32, b"z" * 32} <= set(found)
        assert sum(answer.size_bytes for answer in found.values()) <= 1_048_576


async def test_cached_answers_are_counted_by_tenant_with_how_often_they_were_given(
    store: JobStore,
) -> None:
    other = c.KeepAnswer(answer=cached("z").answer, tenant="s")
    used = c.UseAnswer(key=b"a" * 32, at_ms=9)
    await store.commit([], [], [cached("a"), cached("b"), other])
    await store.commit([], [], [used])
    await store.commit([], [], [used, c.UseAnswer(key=b"unknown", at_ms=9)])
    size_bytes = cached("a").answer.size_bytes
    assert await store.cache_usage() == [
        m.CacheRow(tenant="s", answers=1, size_bytes=size_bytes, hits=0),
        m.CacheRow(tenant="t", answers=2, size_bytes=2 * size_bytes, hits=2),
    ]


async def test_cached_answers_are_forgotten_all_at_once_but_not_those_kept_after(
    store: JobStore,
) -> None:
    await store.commit([], [], [cached("a")])
    await store.commit([], [], [cached("b"), c.ForgetAnswers(), cached("x")])
    found = await store.find_answers([name * 32 for name in (b"a", b"b", b"x")])
    assert list(found) == [b"x" * 32]


async def test_the_latest_questions_are_told_with_who_asked(store: JobStore) -> None:
    jobs = [make_job(submit=m.JobSubmit(prompt=f"q{n}"), device=f"d{n}") for n in range(3)]
    await store.commit([jobs[1], finished(jobs[0]), jobs[2]])
    newest = [(job.device, job.submit) for job in reversed(jobs)]
    assert await store.recent_questions(limit=2) == newest[:2]
    assert await store.recent_questions(limit=9) == newest


async def test_a_failed_commit_keeps_no_answer(tmp_path: Path) -> None:
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        await store.commit([], [], [cached("a")])
        await limit_pages(store, 1)
        with pytest.raises(StoreUnavailableError):
            await store.commit([], [], [cached("b"), cached("c", chars=50_000)])
        assert list(await store.find_answers([b"a" * 32, b"b" * 32])) == [b"a" * 32]


async def test_a_store_of_the_release_before_gets_its_table_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path) as store:
        await store.commit([FULL])
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DROP TABLE cache")
        conn.execute("DELETE FROM _sqlite_migrations WHERE name = '003_cache'")
    async with SqliteJobStore(path) as store:
        assert await store.get(FULL.key) == FULL
        await store.commit([], [], [cached("a")])
        assert list(await store.find_answers([b"a" * 32])) == [b"a" * 32]


async def test_a_store_of_the_release_before_keeps_what_was_spent(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    spend = Spend(day=20, tenant="t", reason="complex", provider="p", model="m", cost_usd=0.25)
    async with SqliteJobStore(path):
        pass
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DROP TABLE spending")
        conn.execute(statements()["spending_table"])
        conn.execute("INSERT INTO spending VALUES (20, 't', 'complex', 'p', 'm', 1, 0, 0, 0, 0.25)")
        conn.execute("DELETE FROM _sqlite_migrations WHERE name = '005_keys'")
    async with SqliteJobStore(path) as store:
        assert await store.spending(since_day=0) == [spend]
        await store.commit([], [spend, replace(spend, key="kitchen")])
        assert [each.calls for each in await store.spending(since_day=0)] == [2, 1]


async def test_a_store_of_the_release_before_keeps_its_dead_letters_longer(tmp_path: Path) -> None:
    path, dead = tmp_path / "jobs.db", finished(make_job(), at_ms=100, dead=True)
    async with SqliteJobStore(path) as store:
        await store.commit([dead, finished(make_job(), at_ms=100)])
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DROP INDEX jobs_kept")
        conn.execute("CREATE INDEX jobs_finished ON jobs (finished_at_ms) WHERE told = 1")
        conn.execute("DELETE FROM _sqlite_migrations WHERE name = '004_dead'")
    async with SqliteJobStore(path) as store:
        assert await prune(store, 9_999) == 1
        assert await listed(store) == [dead]
    with closing(sqlite3.connect(path)) as conn:
        plan = conn.execute(
            "EXPLAIN QUERY PLAN SELECT key FROM jobs WHERE told = 1 AND dead = 0 "
            "AND finished_at_ms < 9 ORDER BY finished_at_ms LIMIT 5"
        ).fetchall()
    assert ["jobs_kept" in row[3] for row in plan] == [True]


async def test_reopening_finds_everything_and_migrates_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "jobs.db"
    for _ in range(2):
        async with SqliteJobStore(path) as store:
            await store.commit([FULL])
    async with SqliteJobStore(path) as store:
        assert await store.get(FULL.key) == FULL
        still = replace(FULL, detail="told again")
        await store.commit([still])
        assert await store.get(FULL.key) == still
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert conn.execute("SELECT count(*) FROM _sqlite_migrations").fetchone() == (5,)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_an_earlier_run_stored_is_found_by_name_before_and_after_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_filter, "_FULL", 1)
    gone, stays = finished(make_job(), at_ms=100), make_job()
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        await store.commit([gone, stays])
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        names = [(job.device, job.id) for job in (gone, stays)]
        assert set(await store.find(names)) == set(names)
        assert await prune(store, 1_000) == 1
        assert set(await store.find(names)) == {names[1]}
        assert [store._names.may_hold(name) for name in names] == [False, True]


_VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.core.job import Job
from fleet_protocol.messages import JobSubmit

async def main():
    async with SqliteJobStore(Path(sys.argv[1])) as store:
        submit = JobSubmit(prompt="Is it safe?")
        for number in range(3):
            await store.commit(
                [Job(key=f"k{number}", device="d", id=str(number), submit=submit, received_at_ms=1)]
            )
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    died = await asyncio.create_subprocess_exec(sys.executable, "-c", _VICTIM, path)
    async with asyncio.timeout(60):
        assert await died.wait() == -signal.SIGKILL
    async with SqliteJobStore(path) as store:
        assert [job.key for job in await store.load_open()] == ["k0", "k1", "k2"]


_LOOKER = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1])
print(conn.execute("SELECT count(*) FROM jobs").fetchone()[0])
conn.close()
"""


async def test_somebody_who_looks_into_the_file_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path) as store:
        for expected in (1, 2, 3):
            await store.commit([make_job()])
            looker = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _LOOKER, path, stdout=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(60):
                said, _ = await looker.communicate()
            assert int(said) == expected
    async with SqliteJobStore(path) as store:
        assert len(await store.load_open()) == 3


async def test_a_file_that_is_no_database_is_a_matter_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is my diary, not a job store. " * 100)
    with pytest.raises(ConfigError, match="no database of ours"):
        await SqliteJobStore(path).__aenter__()
    with pytest.raises(ConfigError):
        probe(path)
    assert path.read_text().startswith("This is my diary")


async def test_a_store_of_a_newer_release_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path):
        pass
    with sqlite3.connect(path) as conn:
        conn.execute(
            "UPDATE _sqlite_migrations SET name = '999_tomorrow' WHERE name = '002_spending'"
        )
    conn.close()
    with pytest.raises(ConfigError, match="999_tomorrow"):
        await SqliteJobStore(path).__aenter__()


async def test_a_folder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match=r"file/jobs\.db"):
        await SqliteJobStore(tmp_path / "file" / "jobs.db").__aenter__()


async def test_a_locked_file_is_unavailable_for_now(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path, busy_timeout_s=0.01) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError) as caught:
            await store.commit([make_job()])
        assert "end it" in caught.value.hint
        other.execute("ROLLBACK")
        other.close()
        await store.commit([make_job()])


async def test_a_defect_is_no_matter_of_patience_and_leaves_nothing(tmp_path: Path) -> None:
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        job = make_job()
        await store.commit([job])
        namesake = make_job(device=job.device, id=job.id)
        with pytest.raises(sqlite3.IntegrityError):
            await store.commit([make_job(), namesake])
        assert await store.load_open() == [job]
        with closing(sqlite3.connect(store.path)) as conn:
            assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


async def test_a_step_rewrites_neither_prompt_nor_answer(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    job = make_job(submit=m.JobSubmit(prompt="x" * 200_000))
    async with SqliteJobStore(path) as store:
        await store.commit([job])
        before = wal_bytes(path)
        await store.commit([replace(job, status=m.JobStatus.RUNNING, attempt=1)])
        done = finished(job, told=False, text="y" * 200_000)
        await store.commit([done])
        answered = wal_bytes(path)
        await store.commit([replace(done, told=True)])
        assert answered - before < 300_000
        assert wal_bytes(path) - answered < 50_000


def wal_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


async def test_probing_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "jobs.db"
    assert "will be made" in probe(path)
    assert not path.parent.exists()
    async with SqliteJobStore(path):
        assert "can be written" in probe(path)


async def test_a_file_shrinks_in_use_once_its_jobs_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteJobStore(path, synchronous="normal") as store:
        await store.commit([finished(make_job(), text="x" * 30_000) for _ in range(1_000)])
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("PRAGMA wal_checkpoint(PASSIVE)")
        full_bytes = path.stat().st_size
        assert full_bytes > 30_000_000
        assert await store.give_back(most_bytes=10**9) == 0
        assert await prune(store, 9_999, limit=1_000) == 1_000
        step_bytes = await store.give_back(most_bytes=1)
        assert 0 < step_bytes <= 1_048_576
        left = make_job()
        await store.commit([left])
        assert await store.give_back(most_bytes=10**9) > 20_000_000
        assert await store.give_back(most_bytes=10**9) == 0
        assert await store.get(left.key) == left
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert path.stat().st_size < 6_000_000


async def test_a_file_of_an_earlier_release_learns_to_shrink(tmp_path: Path) -> None:
    path, job = tmp_path / "jobs.db", finished(make_job())
    async with SqliteJobStore(path) as store:
        await store.commit([job])
    with closing(sqlite3.connect(path)) as old:
        old.execute("PRAGMA journal_mode = delete")
        old.execute("PRAGMA auto_vacuum = none")
        old.execute("VACUUM")
        assert old.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    async with SqliteJobStore(path) as store:
        assert await store.get(job.key) == job
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA auto_vacuum").fetchone() == (2,)
