"""What only PostgreSQL can show: a server that dies, a line that breaks, several who commit."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters.connection_postgres import Link
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore, probe
from cloud_dispatcher.core.commands import KeepAnswer
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.ports import JobStore, StoreUnavailableError
from fleet_protocol import messages as m
from fleet_protocol.errors import ConfigError
from tests.conftest import require
from tests.contract.job_samples import FULL, cached, finished, make_job
from tests.contract.relay import Relay
from tests.postgres_server import PostgresServer, find_postgres

SPEND = Spend(day=20, tenant="t", reason="complex", provider="p", model="m", cost_usd=0.25)
OLD_KEY = "(day, tenant, reason, provider, model)"


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    """A server that may be killed: nobody else's test is on it."""
    require(find_postgres() is not None, "PostgreSQL")
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def relay(postgres: PostgresServer) -> AsyncIterator[Relay]:
    """A wire to the server, which can be cut."""
    async with Relay(postgres.port) as wire:
        yield wire


def behind(relay: Relay, postgres: PostgresServer, database: str) -> PostgresJobStore:
    """Return a store that reaches its database over the relay."""
    name = rows(database, "SELECT current_database()")[0][0]
    url = postgres.tcp_url(str(name), port=relay.port)
    return PostgresJobStore(url, password=lambda: postgres.password)


def rows(url: str, words: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(words.encode()).fetchall()


def change(url: str, *words: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for word in words:
            conn.execute(word.encode())


async def insist(store: JobStore, *work: object) -> int:
    """Commit as the service does, until it works; return how often it did not."""
    for failures in range(2_000):
        try:
            await store.commit(*work)  # type: ignore[arg-type]
        except StoreUnavailableError:
            await asyncio.sleep(0.01)
        else:
            return failures
    raise AssertionError("the server never came back")


# -------------------------------------------------------------------- it dies, it comes back


async def test_a_server_that_was_restarted_is_not_even_noticed(mortal: PostgresServer) -> None:
    name = mortal.create()
    async with PostgresJobStore(mortal.url(name)) as store:
        await store.commit([FULL])
        mortal.stop()
        mortal.start()
        assert await store.get(FULL.key) == FULL
        await store.commit([make_job()], [SPEND])
        assert len(await store.load_open()) == 1


async def test_while_the_server_is_away_nothing_can_be_saved_and_the_reason_is_told(
    mortal: PostgresServer,
) -> None:
    async with PostgresJobStore(mortal.url(mortal.create())) as store:
        mortal.kill()
        calls = (lambda: store.commit([FULL]), store.load_open, lambda: store.get(FULL.key))
        for call in calls:
            with pytest.raises(StoreUnavailableError) as caught:
                await call()
            assert "goes on by itself" in caught.value.hint
        mortal.start()
        assert await store.load_open() == []


async def test_commits_over_kills_of_the_server_are_each_made_once(mortal: PostgresServer) -> None:
    async with PostgresJobStore(mortal.url(mortal.create())) as store:
        jobs = [make_job() for _ in range(300)]
        failures, halts = 0, iter((60, 120, 180, 240))
        halt = next(halts)
        killing: asyncio.Task[None] | None = None
        for number, job in enumerate(jobs):
            if number == halt:
                halt = next(halts, -1)
                killing = asyncio.create_task(asyncio.to_thread(crash, mortal))
            failures += await insist(store, [job], [SPEND], [cached("a")])
            if killing is not None and number == halt - 1:
                await killing
        assert killing is not None
        await killing
        assert await store.load_open() == jobs
        assert await store.spending(since_day=0) == [replace(SPEND, calls=300, cost_usd=75.0)]
        assert failures > 0


def crash(server: PostgresServer) -> None:
    server.kill()
    server.start()


async def arrived(url: str) -> None:
    """Wait until there is a job in the table."""
    while not rows(url, "SELECT 1 FROM jobs"):  # noqa: ASYNC110 - another process's doing
        await asyncio.sleep(0.01)


async def test_a_commit_whose_answer_was_lost_is_made_once(
    postgres: PostgresServer, database: str, relay: Relay
) -> None:
    async with behind(relay, postgres, database) as store:
        job = make_job()
        relay.swallow_answers()
        saving = asyncio.create_task(store.commit([job], [SPEND], [cached("a")]))
        await arrived(database)
        relay.cut()
        with pytest.raises(StoreUnavailableError):
            await saving
        await store.commit([job], [SPEND], [cached("a")])
        step = replace(job, status=m.JobStatus.RUNNING, attempt=1)
        await store.commit([step], [SPEND])
        assert await store.load_open() == [step]
        assert await store.spending(since_day=0) == [replace(SPEND, calls=2, cost_usd=0.5)]


async def test_another_commit_after_one_whose_answer_was_lost_is_made_as_well(
    postgres: PostgresServer, database: str, relay: Relay
) -> None:
    async with behind(relay, postgres, database) as store:
        lost, other = make_job(), make_job()
        relay.swallow_answers()
        saving = asyncio.create_task(store.commit([lost], [SPEND]))
        await arrived(database)
        relay.cut()
        with pytest.raises(StoreUnavailableError):
            await saving
        await store.commit([other], [SPEND])
        assert await store.load_open() == [lost, other]
        assert await store.spending(since_day=0) == [replace(SPEND, calls=2, cost_usd=0.5)]


async def test_a_commit_that_never_arrived_is_made_by_the_next_try(
    postgres: PostgresServer, database: str, relay: Relay
) -> None:
    async with behind(relay, postgres, database) as store:
        relay.swallow_questions()
        saving = asyncio.create_task(store.commit([FULL], [SPEND]))
        await relay.swallowed.wait()
        relay.cut()
        with pytest.raises(StoreUnavailableError):
            await saving
        assert rows(database, "SELECT 1 FROM jobs") == []
        await store.commit([FULL], [SPEND])
        assert await store.get(FULL.key) == FULL
        assert await store.spending(since_day=0) == [SPEND]


async def test_what_a_broken_connection_still_had_under_way_is_locked_out(database: str) -> None:
    async with PostgresJobStore(database) as store:
        await store.commit([make_job()])
        ((writer, link),) = rows(database, "SELECT id, link FROM writers")
        late = f"SELECT note_turn('{writer}', {link}, 99)"
        await store._commits.close()
        await store.commit([make_job()])
        with pytest.raises(psycopg.DatabaseError) as caught:
            change(database, late)
        assert caught.value.sqlstate == "UF001"
        assert rows(database, "SELECT turn FROM writers") == [(2,)]


async def test_a_line_that_falls_silent_is_hung_up(postgres: PostgresServer, relay: Relay) -> None:
    link = Link(postgres.tcp_url("postgres", port=relay.port), password=lambda: postgres.password)
    await link.run(lambda conn: conn.execute("SELECT 1"))
    relay.swallow_answers()
    with pytest.raises(StoreUnavailableError):
        await link.run(lambda conn: conn.execute("SELECT 1"), patience_s=0.2)
    relay.cut()
    await link.run(lambda conn: conn.execute("SELECT 1"), patience_s=5)
    await link.close()


async def test_a_commit_that_is_given_up_leaves_the_store_usable(
    postgres: PostgresServer, database: str, relay: Relay
) -> None:
    async with behind(relay, postgres, database) as store:
        relay.swallow_questions()
        saving = asyncio.create_task(store.commit([FULL], [SPEND]))
        await relay.swallowed.wait()
        saving.cancel()
        relay.cut()
        with pytest.raises(asyncio.CancelledError):
            await saving
        await store.commit([FULL], [SPEND])
        assert await store.spending(since_day=0) == [SPEND]


_VICTIM = """
import asyncio, os, signal, sys
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.core.job import Job
from fleet_protocol.messages import JobSubmit

async def main():
    async with PostgresJobStore(sys.argv[1]) as store:
        submit = JobSubmit(prompt="Is it safe?")
        for number in range(3):
            await store.commit(
                [Job(key=f"k{number}", device="d", id=str(number), submit=submit, received_at_ms=1)]
            )
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_committed_survives_kill_9(database: str) -> None:
    died = await asyncio.create_subprocess_exec(sys.executable, "-c", _VICTIM, database)
    async with asyncio.timeout(60):
        assert await died.wait() == -signal.SIGKILL
    async with PostgresJobStore(database) as store:
        assert [job.key for job in await store.load_open()] == ["k0", "k1", "k2"]


# -------------------------------------------------------------------- it says no


@pytest.mark.parametrize("answers", [[], [cached("a")]])
async def test_a_disk_that_is_full_only_at_the_very_end_saves_nothing(
    database: str, answers: list[KeepAnswer]
) -> None:
    async with PostgresJobStore(database) as store:
        change(
            database,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$",
            "CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT ON jobs"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        with pytest.raises(StoreUnavailableError) as caught:
            await store.commit([FULL], [SPEND], answers)
        assert "space" in caught.value.hint
        assert await store.get(FULL.key) is None
        assert await store.spending(since_day=0) == []
        change(database, "DROP TRIGGER full_disk ON jobs")
        await store.commit([FULL], [SPEND], answers)
        assert await store.spending(since_day=0) == [SPEND]
        assert len(await store.find_answers([b"a" * 32])) == len(answers)


async def test_a_server_that_takes_no_writes_is_named(database: str) -> None:
    async with PostgresJobStore(database) as store:
        await store._commits.run(
            lambda conn: conn.execute("SET default_transaction_read_only = on")
        )
        with pytest.raises(StoreUnavailableError) as caught:
            await store.commit([FULL])
        assert "primary" in caught.value.hint
        await store.commit([FULL])


async def test_of_a_standby_alone_it_is_said_that_it_is_one(
    postgres: PostgresServer, database: str
) -> None:
    async with PostgresJobStore(database):
        pass
    name = rows(database, "SELECT current_database()")[0][0]
    change(postgres.url("postgres", role="postgres"),
           f"ALTER DATABASE {name} SET default_transaction_read_only = on")  # fmt: skip
    with pytest.raises(StoreUnavailableError, match="read-only"):
        await probe(database)


async def test_a_statement_that_somebody_ends_is_tried_again(database: str) -> None:
    async with PostgresJobStore(database) as store:
        change(
            database,
            "CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'canceling statement' USING ERRCODE = 'query_canceled'; END $$",
            "CREATE TRIGGER ended AFTER INSERT ON jobs EXECUTE FUNCTION ended()",
        )
        with pytest.raises(StoreUnavailableError):
            await store.commit([FULL])
        change(database, "DROP TRIGGER ended ON jobs")
        await store.commit([FULL])


async def test_a_defect_is_no_matter_of_patience_and_leaves_nothing(database: str) -> None:
    async with PostgresJobStore(database) as store:
        job = make_job()
        await store.commit([job])
        namesake = make_job(device=job.device, id=job.id)
        with pytest.raises(psycopg.IntegrityError):
            await store.commit([make_job(), namesake], [SPEND])
        assert await store.load_open() == [job]
        assert await store.spending(since_day=0) == []
        await store.commit([replace(job, attempt=1)])


# -------------------------------------------------------------------- opening


async def test_reopening_finds_everything_and_migrates_once(database: str) -> None:
    for _ in range(2):
        async with PostgresJobStore(database) as store:
            await store.commit([FULL])
    async with PostgresJobStore(database) as store:
        still = replace(FULL, detail="told again")
        await store.commit([still])
        assert await store.get(FULL.key) == still
    made = rows(database, "SELECT name FROM migrations ORDER BY name")
    assert made == [("001_jobs",), ("002_cluster",), ("003_keys",)]
    assert rows(database, "SELECT count(*) FROM writers") == [(0,)]


async def test_tables_of_the_release_before_keep_what_was_spent(database: str) -> None:
    async with PostgresJobStore(database) as store:
        await store.commit([], [SPEND])
    change(database, "ALTER TABLE spending DROP COLUMN key")
    change(database, f"ALTER TABLE spending ADD CONSTRAINT spending_pkey PRIMARY KEY {OLD_KEY}")
    change(database, "DELETE FROM migrations WHERE name = '003_keys'")
    async with PostgresJobStore(database) as store:
        await store.commit([], [SPEND, replace(SPEND, key="kitchen")])
        assert await store.spending(since_day=0) == [
            replace(SPEND, calls=2, cost_usd=2 * SPEND.cost_usd),
            replace(SPEND, key="kitchen"),
        ]


async def test_a_second_dispatcher_by_mistake_is_kept_out(database: str) -> None:
    async with PostgresJobStore(database) as store:
        with pytest.raises(StoreUnavailableError, match="another dispatcher"):
            await PostgresJobStore(database).__aenter__()
        await store.commit([FULL])
    async with PostgresJobStore(database) as again:
        assert await again.get(FULL.key) == FULL


async def test_who_was_cut_off_while_another_worked_has_to_start_anew(database: str) -> None:
    async with PostgresJobStore(database) as old:
        await old.commit([FULL])
        await old._commits.close()
        async with PostgresJobStore(database) as new:
            with pytest.raises(StoreUnavailableError, match="another dispatcher"):
                await old.commit([make_job()])
            await new.commit([replace(FULL, detail="changed")])
        with pytest.raises(MemberFencedError, match="meanwhile"):
            await old.commit([FULL], [SPEND])
        assert rows(database, "SELECT count(*) FROM spending") == [(0,)]
    async with PostgresJobStore(database) as again:
        assert await again.get(FULL.key) == replace(FULL, detail="changed")


async def test_a_store_of_a_newer_release_is_refused_untouched(database: str) -> None:
    async with PostgresJobStore(database):
        pass
    change(database, "INSERT INTO migrations (name) VALUES ('999_tomorrow')")
    with pytest.raises(ConfigError, match="999_tomorrow"):
        await PostgresJobStore(database).__aenter__()
    with pytest.raises(ConfigError, match="999_tomorrow"):
        await probe(database)


async def test_a_role_that_may_not_make_tables_is_told_so(
    postgres: PostgresServer, database: str
) -> None:
    name = str(rows(database, "SELECT current_database()")[0][0])
    change(postgres.url(name, role="postgres"), "CREATE ROLE guest LOGIN")
    guest = postgres.url(name, role="guest")
    try:
        for call in (PostgresJobStore(guest).__aenter__, lambda: probe(guest)):
            with pytest.raises(ConfigError, match="may not") as caught:
                await call()
            assert "owner" in caught.value.hint
        async with PostgresJobStore(database):
            pass
        with pytest.raises(ConfigError, match="guest"):
            await probe(guest)
    finally:
        change(postgres.url(name, role="postgres"), "DROP ROLE guest")


async def test_a_database_in_another_encoding_is_refused(postgres: PostgresServer) -> None:
    name = postgres.create(encoding="SQL_ASCII")
    with pytest.raises(ConfigError, match="SQL_ASCII"):
        await PostgresJobStore(postgres.url(name)).__aenter__()
    postgres.drop(name)


async def test_probing_makes_nothing(database: str) -> None:
    assert "will be made" in await probe(database)
    assert rows(database, "SELECT to_regclass('jobs')") == [(None,)]
    async with PostgresJobStore(database):
        assert "can be written" in await probe(database)


async def test_a_password_is_asked_for_each_time_and_said_nowhere(
    postgres: PostgresServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = rows(database, "SELECT current_database()")[0][0]
    url, words = postgres.tcp_url(str(name)), [postgres.password]
    store = PostgresJobStore(url, password=lambda: words[0])
    async with store:
        await store.commit([FULL])
        words[0] = "not-the-password"
        await store._commits.close()
        with pytest.raises(StoreUnavailableError) as caught:
            await store.commit([FULL])
        words[0] = postgres.password
        await store.commit([FULL])
    said = f"{caught.value} {caught.value.hint} {store!r} {caplog.text} {caught.value.__cause__!r}"
    assert "not-the-password" not in said
    assert postgres.password not in said


async def test_a_url_that_is_none_is_a_matter_of_settings() -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        PostgresJobStore("postgresql://db.example/x?no_such_option=1")


# -------------------------------------------------------------------- speed and space


async def test_a_step_copies_neither_prompt_nor_answer(database: str) -> None:
    def wal_bytes() -> int:
        ((position,),) = rows(database, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return int(str(position))

    job = make_job(submit=m.JobSubmit(prompt=noise(200_000)))
    async with PostgresJobStore(database) as store:
        await store.commit([job])
        change(database.replace("fleet@", "postgres@"), "CHECKPOINT")
        await store.commit([replace(job, attempt=9)])  # the first change of a page logs all of it
        before = wal_bytes()
        await store.commit([replace(job, status=m.JobStatus.RUNNING, attempt=1)])
        assert wal_bytes() - before < 50_000
        done = finished(job, told=False, text=noise(200_000))
        await store.commit([done])
        answered = wal_bytes()
        await store.commit([replace(done, told=True)])
        assert wal_bytes() - answered < 50_000


def noise(chars: int) -> str:
    """Return text that cannot be compressed."""
    import random  # noqa: PLC0415

    return "".join(chr(random.Random(1).randrange(0x4E00, 0x9000)) for _ in range(chars // 3))


async def test_steps_find_their_rows_by_key_and_leave_the_indexes_alone(database: str) -> None:
    """Also in a table that was empty when the plans were made, and has grown since."""

    async def counted() -> dict[str, int]:
        await store._commits.run(lambda conn: conn.execute("SELECT pg_stat_force_next_flush()"))
        words = "SELECT seq_scan, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
        ((scans, updates, hot),) = rows(database, f"{words} WHERE relname = 'jobs'")
        return {"scans": int(str(scans)), "updates": int(str(updates)), "hot": int(str(hot))}

    async with PostgresJobStore(database) as store:
        before = await counted()
        for _ in range(20):
            jobs = [make_job() for _ in range(100)]
            await store.commit(jobs)
            await store.commit([replace(job, attempt=1) for job in jobs])
        after = await counted()
    assert after["scans"] == before["scans"]
    assert after["updates"] == 2_000
    assert after["hot"] > 1_800


async def test_a_name_that_postgresql_keeps_in_no_text_is_kept_without_it(database: str) -> None:
    async with PostgresJobStore(database) as store:
        await store.commit([], [replace(SPEND, model="m\0\ud800x")])
        assert [spend.model for spend in await store.spending(since_day=0)] == ["m?x"]


@pytest.mark.parametrize(("synchronous", "expected"), [("full", "on"), ("normal", "off")])
async def test_what_a_commit_waits_for_is_a_setting(
    database: str, synchronous: str, expected: str
) -> None:
    store = PostgresJobStore(database, synchronous=synchronous)  # type: ignore[arg-type]
    async with store:
        assert await waits_for(store) == expected


async def test_a_server_that_waits_for_more_still_does(
    postgres: PostgresServer, database: str
) -> None:
    name = rows(database, "SELECT current_database()")[0][0]
    for default, expected in [("remote_apply", "remote_apply"), ("off", "on")]:
        change(postgres.url("postgres", role="postgres"),
               f"ALTER DATABASE {name} SET synchronous_commit = {default}")  # fmt: skip
        async with PostgresJobStore(database) as store:
            assert await waits_for(store) == expected


async def waits_for(store: PostgresJobStore) -> object:
    async def ask(conn: psycopg.AsyncConnection[tuple[object, ...]]) -> object:
        found = await (await conn.execute("SHOW synchronous_commit")).fetchone()
        return found and found[0]

    return await store._commits.run(ask)
