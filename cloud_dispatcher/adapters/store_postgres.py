"""Jobs in a PostgreSQL database: for several dispatchers, or where there is one anyway.

All SQL is in `queries/postgres.sql`. Two connections: one commits, the other one does all the rest,
so that reads and pruning never wait for a commit, nor a commit for them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, Self, TypedDict

import msgspec
import psycopg

from cloud_dispatcher.adapters.connection_postgres import Conn, Cursor, Link
from cloud_dispatcher.adapters.job_rows import (
    PLAIN,
    Blobs,
    read_answer,
    read_job,
    read_question,
)
from cloud_dispatcher.adapters.job_search import Traits, narrowed, order_of, read_traits, search
from cloud_dispatcher.adapters.schema_postgres import look, migrate, statements
from cloud_dispatcher.adapters.turn_postgres import (
    SPEND_COLUMNS,
    AnswerTable,
    add_spends,
    one_statement,
    write_jobs,
)
from cloud_dispatcher.core.commands import AnswerChange
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.ports import JobPage, JobQuery, StoreUnavailableError
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.messages import CacheRow, DeviceId, JobId, JobKey, JobSubmit

Synchronous = Literal["full", "normal"]
"""`full`: every commit is on the disk. `normal`: a crash of the server may take the last few."""

# A stronger default of the server's own stays as it is.
_DURABLE: Final = {
    "full": b"SELECT set_config('synchronous_commit', 'on', false)"
    b" WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')",
    "normal": b"SET synchronous_commit = off",
}
# Every statement of a commit finds its rows by their keys. A plan made while a table was small
# would be kept while it grows, and read all of it each time.
_BY_KEYS: Final = (
    b"SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;"
    b"SET enable_hashjoin = off; SET enable_mergejoin = off;"
)
_AS_THEY_COME: Final = b"SET plan_cache_mode = force_custom_plan"
_LOADING_S: Final = 600.0


class SavedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit is asked to save; of several values of one job the last one."""

    jobs: tuple[Job, ...]
    spends: tuple[Spend, ...]
    answers: tuple[AnswerChange, ...]


class StoreOptions(TypedDict, total=False):
    """What `PostgresJobStore` takes by name."""

    password: Callable[[], str | None]
    synchronous: Synchronous
    cache_mb: int
    blobs: Blobs


class PostgresJobStore:
    """A JobStore in one database; its tables are made if they are missing.

    Args:
        url: `postgresql://ROLE@HOST/DATABASE`, as libpq reads it, without a password.
        password: Asked at each connection; None: libpq looks into PGPASSWORD and PGPASSFILE.
        synchronous: See `Synchronous`.
        cache_mb: Most megabytes of cached answers.
        blobs: How texts stand in the tables.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(
        self,
        url: str,
        *,
        password: Callable[[], str | None] = lambda: None,
        synchronous: Synchronous = "full",
        cache_mb: int = 64,
        blobs: Blobs = PLAIN,
    ) -> None:
        self._blobs = blobs
        self._synchronous = synchronous
        self._commits = Link(
            url,
            password=password,
            session=_BY_KEYS + _DURABLE[synchronous],
            greet=self._take_up,
        )
        self._others = Link(url, password=password, session=_AS_THEY_COME)
        self._answers = AnswerTable(max_bytes=cache_mb * 1_048_576, blobs=blobs)
        self._saved: dict[JobKey, Job] = {}
        """What the database holds of jobs that are not told yet: only what changed is written."""
        self._writer = uuid.uuid4().hex
        self._link = 0
        self._landed = 0
        """Number of the last commit of ours that the database has, as the connection found it."""
        self._sent = 0
        self._doubtful: SavedTurn | None = None
        """The last commit, while we have no word of how it ended."""

    def __repr__(self) -> str:
        return f"PostgresJobStore({self._commits.where!r}, synchronous={self._synchronous!r})"

    async def __aenter__(self) -> Self:
        """Open and migrate.

        Raises:
            StoreUnavailableError: It cannot be reached now.
            ConfigError: A newer release wrote it, or it cannot be used as things are set.
        """
        where = self._commits.where
        try:
            await self._others.run(lambda conn: migrate(conn, where), patience_s=_LOADING_S)
            await self._others.run(lambda conn: _execute(conn, "forget_writers"))
            await self._commits.run(_nothing)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        try:
            await self._others.run(partial(_execute, name="put_down", values=(self._writer,)))
        except StoreUnavailableError:
            pass  # whoever opens it later clears it away
        finally:
            await self._close()

    async def commit(
        self,
        jobs: Sequence[Job],
        spends: Sequence[Spend] = (),
        answers: Sequence[AnswerChange] = (),
    ) -> None:
        """Save these values in one transaction, or none.

        If the connection breaks at its very end, nobody knows whether it was made. Each commit has
        a number, which the database keeps with it: the next connection asks, and the same commit
        again is then made once in all, although spends are added up.

        Raises:
            StoreUnavailableError: Nothing was saved, or nobody knows; the same call may work later.
            MemberFencedError: Another dispatcher took over; nothing was saved.
        """
        latest = tuple({job.key: job for job in jobs}.values())
        turn = SavedTurn(jobs=latest, spends=tuple(spends), answers=tuple(answers))
        await self._commits.run(lambda conn: self._commit(conn, turn))

    async def find(self, ids: Iterable[tuple[DeviceId, JobId]]) -> Mapping[tuple[str, str], Job]:
        """Return those of the devices' jobs that exist, open or finished."""
        names = tuple(ids)
        if not names:
            return {}
        columns = [list(column) for column in zip(*names, strict=True)]
        jobs = self._jobs(await self._read("find", columns))
        return {(job.device, job.id): job for job in jobs}

    async def get(self, key: JobKey) -> Job | None:
        """Return a job by its key."""
        rows = await self._read_where("select", (("where_key", key),), "oldest")
        return self._jobs(rows)[0] if rows else None

    async def load_open(self) -> list[Job]:
        """Return open jobs and the outbox, oldest first."""
        untold = (("where_untold", None),)
        rows = await self._read_where("select", untold, "oldest", patience_s=_LOADING_S)
        jobs = self._jobs(rows)
        self._saved = {job.key: job for job in jobs}
        return jobs

    async def select(self, query: JobQuery) -> JobPage:
        """List jobs, newest first."""
        return await search(query, jobs=self._listed, traits=self._traits, by_keys=self._by_keys)

    async def spending(self, *, since_day: int) -> list[Spend]:
        """Return what was spent from that UTC day on, oldest first."""
        rows = await self._read("spends", (since_day,))
        return [Spend(**dict(zip(SPEND_COLUMNS, row, strict=True))) for row in rows]

    async def find_answers(self, keys: Iterable[bytes]) -> Mapping[bytes, CachedAnswer]:
        """Return those of the cached answers that exist, fresh or not."""
        wanted = list(keys)
        if not wanted:
            return {}
        found = dict(await self._read("cache_find", (wanted,)))
        return {key: read_answer(key, found[key], self._blobs) for key in wanted if key in found}

    async def recent_questions(self, *, limit: int) -> list[tuple[DeviceId, JobSubmit]]:
        """Return what was asked last and by whom, newest first."""
        rows = await self._read("recent_questions", (limit,))
        return [read_question(row, self._blobs) for row in rows]

    async def cache_usage(self) -> list[CacheRow]:
        """Return what is cached, by tenant."""
        columns = ("tenant", "answers", "size_bytes", "hits")
        rows = await self._read("cache_usage")
        return [CacheRow(**dict(zip(columns, row, strict=True))) for row in rows]

    async def sweep_answers(self, *, until_before_ms: int) -> int:
        """Forget cached answers whose time was over before; return how many."""
        swept = await self._change("cache_sweep", until_before_ms)
        self._answers.forget_bytes()  # also for what other dispatchers added meanwhile
        return swept

    async def purge(self, key: JobKey) -> bool:
        """Forget a dead letter; return whether it was one, and told."""
        return await self._change("purge", key) > 0

    async def give_back(self, *, most_bytes: int) -> int:
        """Space is the server's business: its autovacuum uses it again, and gives back the end."""
        del most_bytes
        return 0

    async def prune(self, *, finished_before_ms: int, dead_before_ms: int, limit: int) -> int:
        """Forget told jobs that finished before, dead letters by their own limit; say how many."""
        pruned = await self._change("prune", False, finished_before_ms, limit)  # noqa: FBT003 - SQL
        return pruned + await self._change("prune", True, dead_before_ms, limit - pruned)  # noqa: FBT003

    # ------------------------------------------------------------ on the committing connection

    async def _take_up(self, conn: Conn) -> None:
        """Wait for the end of what an earlier connection sent, and ask how far it got."""
        await self._enter(conn)
        statement = "take_up_again" if self._link else "take_up"
        found = await (await run_named(conn, statement, (self._writer,))).fetchone()
        if found is None:
            raise MemberFencedError(
                f"another dispatcher worked on the job store {self._commits.where} meanwhile",
                hint="what this one remembers of it is old: it has to start anew",
            )
        self._link, self._landed = found

    async def _enter(self, conn: Conn) -> None:
        """Be the only one: who runs two dispatchers by mistake would have two answer each job."""
        await self._lock(conn, "lock_out_others")
        if not self._link:
            await run_named(conn, "put_down_others", (self._writer,))

    async def _lock(self, conn: Conn, name: str) -> None:
        try:
            await run_named(conn, name)
        except psycopg.errors.LockNotAvailable as error:
            raise StoreUnavailableError(
                f"another dispatcher works on the job store {self._commits.where}",
                hint="end it, or let each of them have a name in [cluster]",
            ) from error

    async def _commit(self, conn: Conn, turn: SavedTurn) -> None:
        doubtful, self._doubtful = self._doubtful, None
        if doubtful is not None and self._landed == self._sent:
            self._note(doubtful)
            if doubtful == turn:
                return
        self._doubtful = turn
        self._sent = self._landed + 1
        await self._send(conn, turn)
        self._landed = self._sent
        self._doubtful = None
        self._note(turn)

    async def _send(self, conn: Conn, turn: SavedTurn) -> None:
        """Save it all in one statement; what becomes of cached answers goes along behind it."""
        text, values = self._statement(turn)
        if not turn.answers:
            await conn.execute(text.encode(), values)
            return
        counting = None
        try:
            async with conn.pipeline():
                await run_named(conn, "begin")
                await conn.execute(text.encode(), values)
                for name, columns in self._answers.change(turn.answers):
                    done = await run_named(conn, name, columns)
                    counting = done if name == "cache_bytes" else counting
                await run_named(conn, "commit")
        except BaseException:
            self._answers.forget_bytes()
            raise
        counted = None if counting is None else await counting.fetchone()
        if counted is not None:
            self._answers.counted(counted[0])

    def _statement(self, turn: SavedTurn) -> tuple[str, list[object]]:
        changes = [*write_jobs(turn.jobs, self._saved, self._blobs), *add_spends(turn.spends)]
        note = (self._writer, self._link, self._sent)
        return one_statement(changes, ("note_turn", note), statements())

    def _note(self, turn: SavedTurn) -> None:
        for job in turn.jobs:
            if job.told:
                self._saved.pop(job.key, None)
            else:
                self._saved[job.key] = job

    # ------------------------------------------------------------ on the other one

    async def _close(self) -> None:
        await self._commits.close()
        await self._others.close()

    def _jobs(self, rows: Iterable[Sequence[Any]]) -> list[Job]:
        return [read_job(row, self._blobs) for row in rows]

    async def _read(self, name: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return await self._others.run(lambda conn: _rows(conn, statements()[name], values))

    async def _listed(self, query: JobQuery) -> list[Job]:
        order = order_of(query)
        return self._jobs(await self._read_where("select", narrowed(query), order, query.limit))

    async def _traits(self, query: JobQuery) -> list[Traits]:
        order = order_of(query)
        rows = await self._read_where("select_traits", narrowed(query), order, query.limit)
        return [read_traits(row, self._blobs) for row in rows]

    async def _by_keys(self, keys: Sequence[JobKey]) -> list[Job]:
        named = (("where_keys", list(keys)),)
        return self._jobs(await self._read_where("select", named, "newest", len(keys)))

    async def _read_where(
        self,
        what: str,
        filters: Iterable[tuple[str, object]],
        order: str,
        *values: object,
        patience_s: float = 60.0,
    ) -> list[tuple[Any, ...]]:
        names, found = [what], list[object]()
        for name, value in filters:
            names.append(name)
            found += [] if value is None else [value]
        text = "\n".join(statements()[name] for name in (*names, order))
        return await self._others.run(
            lambda conn: _rows(conn, text, (*found, *values)), patience_s=patience_s
        )

    async def _change(self, name: str, *values: object) -> int:
        return await self._others.run(lambda conn: _execute(conn, name, values))


async def probe(url: str, *, password: Callable[[], str | None] = lambda: None) -> str:
    """Look whether the store can be used, without making or migrating it; say what is there.

    Raises:
        StoreUnavailableError: It cannot be reached or written now.
        ConfigError: It cannot be used as things are set.
    """
    link = Link(url, password=password)
    try:
        return await look(link)
    finally:
        await link.close()


async def _nothing(conn: Conn) -> None:
    """Connect, no more."""
    del conn


async def run_named(conn: Conn, name: str, values: Sequence[object] = ()) -> Cursor:
    """Execute a statement by its name."""
    return await conn.execute(statements()[name].encode(), values or None, binary=True)


async def _execute(conn: Conn, name: str, values: Sequence[object] = ()) -> int:
    """Return how many rows it was."""
    return (await run_named(conn, name, values)).rowcount


async def _rows(conn: Conn, text: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    return await (await conn.execute(text.encode(), values or None, binary=True)).fetchall()
