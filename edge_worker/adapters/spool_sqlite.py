"""The spool in a SQLite file: what the worker promised survives kill -9 and a power cut.

WAL with synchronous NORMAL: after kill -9 nothing is lost; after a power cut the last moments may
be, never the file. Such an attempt was told `started` and is not in the `held` that follows, so
the dispatcher gives it to another board.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import structlog
from sqlite_utils import Database

from edge_worker.ports import Outcome, SpooledJob, SpoolUnavailableError
from fleet_protocol.messages import Assignment, Escalation, JobDone, JobFailed, JobKey

SCHEMA_VERSION: Final = 1
_PAGE_BYTES: Final = 4_096
_MIGRATIONS: Final = (
    """
    CREATE TABLE attempts (
        job TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        received_at_ms INTEGER NOT NULL,
        assignment BLOB NOT NULL,
        kind TEXT,
        outcome BLOB,
        PRIMARY KEY (job, attempt)
    ) WITHOUT ROWID
    """,
)
_KEEP: Final = """
    INSERT INTO attempts (job, attempt, received_at_ms, assignment, kind, outcome)
    VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (job, attempt) DO UPDATE SET kind = excluded.kind, outcome = excluded.outcome
"""
_BEGIN: Final = """
    INSERT INTO attempts (job, attempt, received_at_ms, assignment) VALUES (?, ?, ?, ?)
    ON CONFLICT (job, attempt) DO UPDATE SET kind = NULL, outcome = NULL
"""
_CONCLUDE: Final = "UPDATE attempts SET kind = ?, outcome = ? WHERE job = ? AND attempt = ?"
_FORGET: Final = "DELETE FROM attempts WHERE job = ? AND attempt = ?"
_LOAD: Final = """
    SELECT job, attempt, received_at_ms, assignment, kind, outcome
    FROM attempts ORDER BY received_at_ms, job
"""
_KINDS: Final[dict[str, type[Outcome]]] = {
    "done": JobDone,
    "failed": JobFailed,
    "escalation": Escalation,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}

_log = structlog.get_logger()
_encoder = msgspec.json.Encoder()
_Row = tuple[str, int, int, bytes, str | None, bytes | None]


class SqliteSpool:
    """A `Spool` in one file, which it locks: two workers never share a data folder."""

    def __init__(self, path: Path, *, max_mb: int = 256) -> None:
        """`max_mb` bounds the file; beyond it commits fail as on a full disk."""
        self._path = path
        self._max_pages = max_mb * 1_048_576 // _PAGE_BYTES
        self._database: Database | None = None

    def __repr__(self) -> str:
        return f"SqliteSpool({str(self._path)!r}, open={self._database is not None})"

    def open(self) -> None:
        """Open, lock and migrate. A damaged file is put aside and a new one begun.

        Raises:
            SpoolUnavailableError: It cannot be opened; `spool_locked`: another worker has it.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._put_aside(error)
                self._database = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def commit(self, *, keep: Iterable[SpooledJob], forget: Iterable[tuple[JobKey, int]]) -> None:
        """Save and delete in one transaction; an attempt in both is deleted."""
        database = self._opened()
        try:
            # A cursor left open, if only in a traceback, would hold the file's lock beyond `close`.
            with database.atomic(), closing(database.conn.cursor()) as cursor:
                _keep(cursor, list(keep))
                cursor.executemany(_FORGET, list(forget))
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def load(self) -> list[SpooledJob]:
        """Return everything held, oldest first; what an older release cannot have meant is left."""
        try:
            rows: list[_Row] = self._opened().execute(_LOAD).fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        jobs = []
        for row in rows:
            try:
                jobs.append(_job(row))
            except (msgspec.MsgspecError, KeyError) as error:
                _log.warning(
                    "spool.unreadable", job=row[0], attempt=row[1], error=type(error).__name__
                )
        return jobs

    def close(self) -> None:
        """Close and unlock."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _connect(self) -> Database:
        # The service opens and uses the spool in one executor thread, but a test or a program that
        # ends may close it from another: never two threads at once.
        connection = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
        try:
            database = Database(connection)
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.enable_wal()
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA max_page_count = {self._max_pages}")
            self._migrate(database)
        except BaseException:
            connection.close()
            raise
        return database

    def _migrate(self, database: Database) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise sqlite3.OperationalError(f"schema {version} is of a newer release")
        # Taken even if there is nothing to do: it is what locks the file.
        with database.atomic():
            for statement in _MIGRATIONS[version:]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        _log.error("spool.damaged", error=str(error), moved_to=str(aside))

    def _opened(self) -> Database:
        if self._database is None:
            raise SpoolUnavailableError(f"the spool {self._path} is not open")
        return self._database

    def _unavailable(self, error: Exception) -> SpoolUnavailableError:
        code, hint = None, "free disk space, or check the data folder's owner and mount"
        if "locked" in str(error):
            code = "spool_locked"
            hint = "another worker runs on this data folder: stop it or give --data"
        return SpoolUnavailableError(f"the spool {self._path}: {error}", code=code, hint=hint)


def _keep(cursor: sqlite3.Cursor, jobs: list[SpooledJob]) -> None:
    """Write attempts. One with an outcome is nearly always there: then only that is written."""
    cursor.executemany(_BEGIN, [_beginning(job) for job in jobs if job.outcome is None])
    over = [(job, _outcome(job.outcome)) for job in jobs if job.outcome is not None]
    cursor.executemany(
        _CONCLUDE, [(*said, job.assignment.job, job.assignment.attempt) for job, said in over]
    )
    if cursor.rowcount < len(over):
        cursor.executemany(_KEEP, [(*_beginning(job), *said) for job, said in over])


def _beginning(job: SpooledJob) -> tuple[str, int, int, bytearray]:
    assignment = job.assignment
    return assignment.job, assignment.attempt, job.received_at_ms, _encode(assignment)


def _outcome(outcome: Outcome) -> tuple[str, bytearray]:
    return _NAMES[type(outcome)], _encode(outcome)


def _encode(value: Assignment | Outcome) -> bytearray:
    """Return JSON as SQLite's driver takes it at once: it asks all around how to adapt `bytes`."""
    data = bytearray()
    _encoder.encode_into(value, data)
    return data


def _job(row: _Row) -> SpooledJob:
    _, _, received_at_ms, assignment, kind, outcome = row
    return SpooledJob(
        assignment=msgspec.json.decode(assignment, type=Assignment),
        received_at_ms=received_at_ms,
        outcome=None
        if kind is None or outcome is None
        else msgspec.json.decode(outcome, type=_KINDS[kind]),
    )
