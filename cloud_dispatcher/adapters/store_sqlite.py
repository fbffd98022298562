"""Jobs in one SQLite file (WAL): what the dispatcher answers for survives kill -9.

All SQL is in `queries/jobs.sql`. One connection, used by one named thread.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

from cloud_dispatcher.adapters.answers_sqlite import AnswerTable, read_answers, read_usage
from cloud_dispatcher.adapters.connection_sqlite import Connection, make_private, mapped
from cloud_dispatcher.adapters.job_rows import (
    PLAIN,
    Blobs,
    is_trouble,
    read_job,
    read_question,
    state_of,
)
from cloud_dispatcher.adapters.job_search import Traits, narrowed, order_of, read_traits, search
from cloud_dispatcher.adapters.name_filter import NameFilter
from cloud_dispatcher.adapters.schema_sqlite import check_history, migrate, statements
from cloud_dispatcher.adapters.space_sqlite import allow_shrinking, give_back
from cloud_dispatcher.adapters.spending_sqlite import add_spends, read_spends
from cloud_dispatcher.core.commands import AnswerChange
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.ports import JobPage, JobQuery, StoreUnavailableError
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.errors import FleetError
from fleet_protocol.file_lock import FileLock
from fleet_protocol.messages import (
    CacheRow,
    DeviceId,
    JobId,
    JobKey,
    JobStatus,
    JobSubmit,
)

Synchronous = Literal["full", "normal"]
"""`full`: every commit is on the disk. `normal`: a power cut may take the last few commits."""

_WRITE_ORDER: Final = (
    "upsert_job", "step", "finish_ok", "tell", "insert_prompt", "forget_answer", "upsert_answer",
    "upsert_result",
)  # fmt: skip


_MANY: Final = 5_000
"""With so many jobs a device is no longer looked up by its name to have them sorted by age."""


class SqliteJobStore:
    """A JobStore in one file. Its folder is made if it is missing; only we may read the file.

    Reads have a connection of their own: they never wait for a commit to reach the disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Synchronous = "full",
        busy_timeout_s: float = 5.0,
        cache_mb: int = 64,
        blobs: Blobs = PLAIN,
    ) -> None:
        self.path = path
        self._blobs = blobs
        self._answers = AnswerTable(statements(), max_bytes=cache_mb * 1_048_576, blobs=blobs)
        self._busy_timeout_s = busy_timeout_s
        self._synchronous = synchronous
        self._writer = Connection(path, "job-store-write")
        self._reader = Connection(path, "job-store-read")
        self._saved: dict[JobKey, Job] = {}
        """What the file holds of jobs that are not told yet: so only what changed is written."""
        self._names = NameFilter()
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def __repr__(self) -> str:
        return f"SqliteJobStore({str(self.path)!r}, synchronous={self._synchronous!r})"

    async def __aenter__(self) -> Self:
        """Open and migrate.

        Raises:
            StoreUnavailableError: It cannot be opened now; `store_in_use`: by another dispatcher.
            ConfigError: The file is no database, or a newer release wrote it.
        """
        try:
            await self._writer.open(self._make_and_connect)
            await self._writer.run(self._migrate)
            await self._writer.run(self._learn_names)
            await self._reader.open(self._connect)
        except FleetError:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self._reader.close()
        await self._writer.close()
        self._lock.let_go()

    async def commit(
        self,
        jobs: Sequence[Job],
        spends: Sequence[Spend] = (),
        answers: Sequence[AnswerChange] = (),
    ) -> None:
        """Save these values in one transaction, or none."""
        await self._writer.run(lambda conn: self._commit(conn, jobs, spends, answers))

    async def find_answers(self, keys: Iterable[bytes]) -> Mapping[bytes, CachedAnswer]:
        """Return those of the cached answers that exist, fresh or not."""
        blobs = self._blobs
        return await self._reader.run(lambda conn: read_answers(conn, statements(), keys, blobs))

    async def recent_questions(self, *, limit: int) -> list[tuple[DeviceId, JobSubmit]]:
        """Return what was asked last and by whom, newest first."""
        rows = await self._reader.run(lambda conn: _rows(conn, "recent_questions", (limit,)))
        return [read_question(row, self._blobs) for row in rows]

    async def cache_usage(self) -> list[CacheRow]:
        """Return what is cached, by tenant."""
        return await self._reader.run(lambda conn: read_usage(conn, statements()))

    async def sweep_answers(self, *, until_before_ms: int) -> int:
        """Forget cached answers whose time was over before; return how many."""
        return await self._writer.run(lambda conn: self._sweep(conn, until_before_ms))

    async def spending(self, *, since_day: int) -> list[Spend]:
        """Return what was spent from that UTC day on, oldest first."""
        return await self._reader.run(lambda conn: read_spends(conn, statements(), since_day))

    async def find(self, ids: Iterable[tuple[DeviceId, JobId]]) -> Mapping[tuple[str, str], Job]:
        """Return those of the devices' jobs that exist, open or finished."""
        pairs = tuple(filter(self._names.may_hold, ids))
        if not pairs:  # Most jobs are new: no way to the thread and back.
            return {}
        return await self._reader.run(
            lambda conn: {
                pair: read_job(row, self._blobs)
                for pair in pairs
                for row in _rows(conn, "find", pair)
            }
        )

    async def get(self, key: JobKey) -> Job | None:
        """Return a job by its key."""
        rows = await self._reader.run(lambda conn: _rows(conn, "get", (key,)))
        return read_job(rows[0], self._blobs) if rows else None

    async def load_open(self) -> list[Job]:
        """Return open jobs and the outbox, oldest first."""
        rows = await self._reader.run(lambda conn: _rows(conn, "load_open", ()))
        jobs = [read_job(row, self._blobs) for row in rows]
        self._saved = {job.key: job for job in jobs}
        return jobs

    async def select(self, query: JobQuery) -> JobPage:
        """List jobs, newest first."""
        return await search(query, jobs=self._listed, traits=self._traits, by_keys=self._by_keys)

    async def purge(self, key: JobKey) -> bool:
        """Forget a dead letter; return whether it was one, and told."""
        return await self._writer.run(lambda conn: _delete(conn, "purge", (key,))) > 0

    async def give_back(self, *, most_bytes: int) -> int:
        """Return disk space that nothing needs to the system, in short steps; return how much."""
        return await give_back(self._writer, most_bytes=most_bytes)

    async def prune(self, *, finished_before_ms: int, dead_before_ms: int, limit: int) -> int:
        """Forget told jobs that finished before, dead letters by their own limit; say how many."""
        pruned = 0
        for dead, before_ms in ((0, finished_before_ms), (1, dead_before_ms)):
            oldest = (dead, before_ms, limit - pruned)
            pruned += await self._writer.run(partial(_delete, name="prune", values=oldest))
        if self._names.is_full:
            await self._writer.run(self._learn_names)
        return pruned

    async def _listed(self, query: JobQuery) -> list[Job]:
        rows = await self._reader.run(lambda conn: _read(conn, "select", query))
        return [read_job(row, self._blobs) for row in rows]

    async def _traits(self, query: JobQuery) -> list[Traits]:
        rows = await self._reader.run(lambda conn: _read(conn, "select_traits", query))
        return [read_traits(row, self._blobs) for row in rows]

    async def _by_keys(self, keys: Sequence[JobKey]) -> list[Job]:
        sql = "\n".join(statements()[part] for part in ("select", "where_keys", "newest"))
        values = (json.dumps(keys), len(keys))
        rows = await self._reader.run(lambda conn: conn.execute(sql, values).fetchall())
        return [read_job(row, self._blobs) for row in rows]

    # ------------------------------------------------------------ in the writer's thread

    def _make_and_connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if holder := self._lock.take():
            raise StoreUnavailableError(
                f"another dispatcher (process {holder}) works on {self.path}",
                code="store_in_use",
                hint="stop that one, or give this one a folder of its own with --data",
            )
        make_private(self.path)
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, timeout=self._busy_timeout_s)
        try:
            # Before the first table: later it needs the whole file written anew.
            conn.execute("PRAGMA auto_vacuum = incremental")
            conn.execute("PRAGMA journal_mode = wal")
            conn.execute(f"PRAGMA synchronous = {self._synchronous}")
            conn.execute("PRAGMA foreign_keys = on")
        except BaseException:
            conn.close()
            raise
        return conn

    def _migrate(self, conn: sqlite3.Connection) -> None:
        migrate(conn, self.path)
        allow_shrinking(conn, self.path)

    def _learn_names(self, conn: sqlite3.Connection) -> None:
        self._names = NameFilter(conn.execute(statements()["names"]))

    def _sweep(self, conn: sqlite3.Connection, until_before_ms: int) -> int:
        with conn:
            swept = conn.execute(statements()["cache_sweep"], (until_before_ms,)).rowcount
        if swept:
            self._answers.forget_bytes()
        return swept

    def _commit(
        self,
        conn: sqlite3.Connection,
        jobs: Sequence[Job],
        spends: Sequence[Spend],
        answers: Sequence[AnswerChange],
    ) -> None:
        sql, saved = statements(), self._saved
        writes: dict[str, list[tuple[object, ...]]] = {}
        latest = {job.key: job for job in jobs}.values()
        for job in latest:
            for name, values in _writes(saved.get(job.key), job, self._blobs):
                writes.setdefault(name, []).append(values)
        conn.execute("BEGIN IMMEDIATE")
        try:
            for name in _WRITE_ORDER:
                if name not in writes:
                    continue
                changed = conn.executemany(sql[name], writes[name]).rowcount
                if name == "insert_prompt" and changed == len(writes[name]):
                    # All new: none has an old answer to forget.
                    writes.pop("forget_answer", None)
            if spends:
                add_spends(conn, sql, spends)
            if answers:
                self._answers.change(conn, answers)
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            self._answers.forget_bytes()
            raise
        self._names.add_all((job.device, job.id) for job in latest if job.key not in saved)
        for job in latest:
            if job.told:
                saved.pop(job.key, None)
            else:
                saved[job.key] = job


def _rows(conn: sqlite3.Connection, name: str, values: Sequence[object]) -> list[Any]:
    return conn.execute(statements()[name], values).fetchall()


def _delete(conn: sqlite3.Connection, name: str, values: Sequence[object]) -> int:
    with conn:
        return conn.execute(statements()[name], values).rowcount


def _has_many(conn: sqlite3.Connection, device: DeviceId) -> bool:
    return bool(_rows(conn, "has_many", (_MANY, device, _MANY))[0][0])


def _read(conn: sqlite3.Connection, what: str, query: JobQuery) -> list[Any]:
    conditions = narrowed(query)
    names = [what, *(name for name, _ in conditions), order_of(query)]
    if query.device is not None and _has_many(conn, query.device):
        names[names.index("where_device")] = "where_device_met"
    values = [value for _, value in conditions if value is not None]
    sql = "\n".join(statements()[name] for name in names)
    return conn.execute(sql, (*values, query.limit)).fetchall()


def probe(path: Path) -> str:
    """Look whether the store can be written, without making or migrating it; say what is there.

    Raises:
        StoreUnavailableError: It cannot.
        ConfigError: The file is no database, or a newer release wrote it.
    """
    try:
        if not path.exists():
            return _probe_folder(path)
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as conn:
            conn.execute("BEGIN IMMEDIATE")
            conn.execute("ROLLBACK")
            check_history(conn, path)
    except (sqlite3.Error, OSError) as error:
        raise mapped(error, path) from error
    return f"{path} can be written"


def _probe_folder(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} may not be written")
    return f"{path} will be made"


def _writes(saved: Job | None, job: Job, blobs: Blobs) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Name the statements, with their values, that bring the file from `saved` to `job`."""
    if saved is None:
        yield "upsert_job", _columns(job, blobs)
        yield "insert_prompt", (job.key, blobs.encode(job.submit, job.key, "submit"))
        if job.kept is None and job.result is None:
            # A finished job that starts over must not keep its old answer.
            yield "forget_answer", (job.key,)
    elif job.told and job.result is saved.result and job.dead == saved.dead:
        yield "tell", (job.key,)
    elif not saved.status.is_final and not job.status.is_final:
        yield "step", (*_changing(job, blobs), job.key)
    elif not (saved.status.is_final or job.told or job.dead) and job.status is JobStatus.OK:
        yield "finish_ok", (*_changing(job, blobs), job.finished_at_ms, job.key)
    else:
        yield "upsert_job", _columns(job, blobs)
    before = (None, None) if saved is None else (saved.kept, saved.result)
    if before[0] is not job.kept or before[1] is not job.result:
        kept = None if job.kept is None else blobs.encode(job.kept, job.key, "kept")
        result = None if job.result is None else blobs.encode(job.result, job.key, "result")
        if kept is None and result is not None:
            yield "upsert_result", (job.key, result)
        else:
            yield "upsert_answer", (job.key, kept, result)


def _changing(job: Job, blobs: Blobs) -> tuple[object, ...]:
    return str(job.status), job.attempt, job.worker, blobs.encode(state_of(job), job.key, "state")


def _columns(job: Job, blobs: Blobs) -> tuple[object, ...]:
    """The row of `jobs`, in the order of `upsert_job`. Ints, for the driver would adapt a bool."""
    return (
        job.key,
        job.device,
        job.id,
        str(job.status),
        job.submit.priority,
        job.received_at_ms,
        job.finished_at_ms,
        job.attempt,
        job.worker,
        int(job.dead),
        int(job.told),
        int(is_trouble(job)),
        blobs.encode(state_of(job), job.key, "state"),
    )
