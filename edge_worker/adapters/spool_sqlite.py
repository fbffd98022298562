"""The spool in a SQLite file: what the worker promised survives kill -9 and a power cut.

WAL with synchronous NORMAL: after kill -9 nothing is lost; after a power cut the last moments may
be, never the file. Such an attempt was told `started` and is not in the `held` that follows, so
the dispatcher gives it to another board.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog
from sqlite_utils import Database

from edge_worker.ports import Outcome, SpooledJob, SpoolUnavailableError
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.codec import UNREADABLE
from fleet_protocol.errors import ConfigError, FleetError
from fleet_protocol.messages import Assignment, Escalation, JobDone, JobFailed, JobKey

SCHEMA_VERSION: Final = 2
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
    """
    CREATE TABLE cached_answers (
        key BLOB PRIMARY KEY,
        answer BLOB NOT NULL,
        size_bytes INTEGER NOT NULL,
        made_at_ms INTEGER NOT NULL
    )
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
_CACHE: Final = """
    INSERT INTO cached_answers (key, answer, size_bytes, made_at_ms) VALUES (?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET
        answer = excluded.answer, size_bytes = excluded.size_bytes, made_at_ms = excluded.made_at_ms
"""
_CACHED: Final = "SELECT key, answer FROM cached_answers ORDER BY made_at_ms"
_CACHED_BYTES: Final = "SELECT coalesce(sum(size_bytes), 0) FROM cached_answers"
_OLDEST_CACHED: Final = "SELECT key, size_bytes FROM cached_answers ORDER BY made_at_ms"
_UNCACHE: Final = "DELETE FROM cached_answers WHERE key = ?"
_UNCACHE_ALL: Final = "DELETE FROM cached_answers"
_ROOM_SHARE: Final = 0.9
"""What is full of cached answers is emptied to this share, so that this happens rarely."""
_KINDS: Final[dict[str, type[Outcome]]] = {
    "done": JobDone,
    "failed": JobFailed,
    "escalation": Escalation,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}

_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PRIMARY_CODE: Final = 0xFF
"""SQLite says more of an error in the bits above."""

_log = structlog.get_logger()
_encoder = msgspec.json.Encoder()
_Row = tuple[str, int, int, bytes, str | None, bytes | None]


class Sealer(Protocol):
    """Seals what is kept, bound to its place."""

    def seal(self, data: bytes, about: bytes) -> bytes:
        """Return its sealed form."""
        ...

    def open(self, data: bytes, about: bytes) -> bytes:
        """Return what was sealed, or what never was as it is; raises FleetError."""
        ...


class _DamagedError(sqlite3.DatabaseError):
    """A look at the whole file found damage."""


class SqliteSpool:
    """A `Spool` in one file, which it locks: two workers never share a data folder."""

    def __init__(
        self, path: Path, *, max_mb: int = 256, cache_mb: int = 8, sealer: Sealer | None = None
    ) -> None:
        """`max_mb` bounds the file; beyond it commits fail as on a full disk.

        Cached answers take up to `cache_mb` of it and make room for attempts when it is full. With
        a sealer prompts and answers are kept sealed; what cannot be opened is left, as if lost.
        """
        self._path = path
        self._sealer = sealer
        self._cache_bytes = cache_mb * 1_048_576
        self._cached_bytes: int | None = None
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
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def commit(
        self,
        *,
        keep: Iterable[SpooledJob],
        forget: Iterable[tuple[JobKey, int]],
        answers: Iterable[CachedAnswer] = (),
        clear: bool = False,
    ) -> None:
        """Save and delete in one transaction; an attempt in both is deleted.

        A file that turns out to be damaged is put aside: a new one takes what is promised from now
        on. What only the old one had is lost, should this process end before it is settled.
        """
        jobs, refs, cached = list(keep), list(forget), list(answers)
        self._opened()
        try:
            try:
                self._save(jobs, refs, cached, clear=clear)
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)
                self._save(jobs, refs, cached, clear=clear)
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def load_answers(self) -> list[CachedAnswer]:
        """Return the answers kept, oldest first; unreadable ones are left out: they were a help."""
        try:
            rows = self._opened().execute(_CACHED).fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        answers = []
        for key, answer in rows:
            with suppress(*UNREADABLE, FleetError):
                data = self._open(answer, _place("answer", key.hex()))
                answers.append(msgspec.msgpack.decode(data, type=CachedAnswer))
        return answers

    def _save(
        self,
        jobs: list[SpooledJob],
        refs: list[tuple[JobKey, int]],
        answers: list[CachedAnswer],
        *,
        clear: bool,
    ) -> None:
        """Write all of it; where the file is full, earlier answers make room."""
        database = self._opened()
        if clear:
            self._uncache_all(database)
        try:
            self._write(database, jobs, refs, answers)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._uncache_all(database):
                raise
            _log.warning("cache.gave_way")
            self._write(database, jobs, refs, [])

    def _write(
        self,
        database: Database,
        jobs: list[SpooledJob],
        refs: list[tuple[JobKey, int]],
        answers: list[CachedAnswer],
    ) -> None:
        # A cursor left open, if only in a traceback, would hold the file's lock beyond `close`.
        with database.atomic(), closing(database.conn.cursor()) as cursor:
            self._keep(cursor, jobs)
            cursor.executemany(_FORGET, refs)
            if answers and self._cache_bytes:
                self._cache(cursor, answers)

    def _cache(self, cursor: sqlite3.Cursor, answers: list[CachedAnswer]) -> None:
        """Keep answers; the oldest make room. Replaced ones count until all are counted again."""
        cursor.executemany(
            _CACHE,
            [
                (
                    x.key,
                    self._seal(msgspec.msgpack.encode(x), _place("answer", x.key.hex())),
                    x.size_bytes,
                    x.made_at_ms,
                )
                for x in answers
            ],
        )
        grown = sum(answer.size_bytes for answer in answers)
        known = self._cached_bytes
        if known is None or known + grown > self._cache_bytes:
            known, grown = cursor.execute(_CACHED_BYTES).fetchone()[0], 0
        if known + grown > self._cache_bytes:
            known = self._make_room(cursor, known)
        self._cached_bytes = known + grown

    def _make_room(self, cursor: sqlite3.Cursor, known_bytes: int) -> int:
        left_bytes, gone = known_bytes, []
        for key, size_bytes in cursor.execute(_OLDEST_CACHED).fetchall():
            if left_bytes <= self._cache_bytes * _ROOM_SHARE:
                break
            left_bytes -= size_bytes
            gone.append((key,))
        cursor.executemany(_UNCACHE, gone)
        return left_bytes

    def _uncache_all(self, database: Database) -> bool:
        """Give up all cached answers; return whether there were any."""
        self._cached_bytes = None
        with database.atomic(), closing(database.conn.cursor()) as cursor:
            gone = cursor.execute(_UNCACHE_ALL).rowcount
        return gone > 0

    def load(self) -> list[SpooledJob]:
        """Return everything held, oldest first; what an older release cannot have meant is left."""
        try:
            rows: list[_Row] = self._opened().execute(_LOAD).fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        jobs = []
        for row in rows:
            try:
                jobs.append(self._job(row))
            except (*UNREADABLE, KeyError, FleetError) as error:
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
        if not self._path.exists():
            _make(self._path)
        # The service opens and uses the spool in one executor thread, but a test or a program that
        # ends may close it from another: never two threads at once.
        connection = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
        try:
            database = Database(connection)
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.enable_wal()
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA max_page_count = {self._max_pages}")
            _check(database)
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

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Put a damaged file aside and begin a new one; raise any other error again."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & _PRIMARY_CODE
        if not isinstance(error, _DamagedError) and code not in _DAMAGED:
            raise error
        self.close()
        self._cached_bytes = None
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        _log.error("spool.damaged", error=str(error), moved_to=str(aside))
        self._database = self._connect()

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

    # ------------------------------------------------------------ rows

    def _keep(self, cursor: sqlite3.Cursor, jobs: list[SpooledJob]) -> None:
        """Write attempts. One with an outcome is nearly always there: then only that is written."""
        begun = [self._beginning(job) for job in jobs if job.outcome is None]
        cursor.executemany(_BEGIN, begun)
        over = [(job, self._outcome(job, job.outcome)) for job in jobs if job.outcome is not None]
        cursor.executemany(
            _CONCLUDE, [(*said, job.assignment.job, job.assignment.attempt) for job, said in over]
        )
        if cursor.rowcount < len(over):
            cursor.executemany(_KEEP, [(*self._beginning(job), *said) for job, said in over])

    def _beginning(self, job: SpooledJob) -> tuple[str, int, int, bytearray]:
        assignment = job.assignment
        data = _encode(assignment)
        if self._sealer is not None:
            data = self._seal(data, _place("assignment", assignment.job, assignment.attempt))
        return assignment.job, assignment.attempt, job.received_at_ms, data

    def _outcome(self, job: SpooledJob, outcome: Outcome) -> tuple[str, bytearray]:
        data = _encode(outcome)
        if self._sealer is not None:
            place = _place("outcome", job.assignment.job, job.assignment.attempt)
            data = self._seal(data, place)
        return _NAMES[type(outcome)], data

    def _job(self, row: _Row) -> SpooledJob:
        job, attempt, received_at_ms, assignment, kind, outcome = row
        assignment = self._open(assignment, _place("assignment", job, attempt))
        if outcome is not None:
            outcome = self._open(outcome, _place("outcome", job, attempt))
        return SpooledJob(
            assignment=msgspec.json.decode(assignment, type=Assignment),
            received_at_ms=received_at_ms,
            outcome=None
            if kind is None or outcome is None
            else msgspec.json.decode(outcome, type=_KINDS[kind]),
        )

    def _seal(self, data: bytes | bytearray, place: bytes) -> bytearray:
        if self._sealer is None:
            return bytearray(data)
        return bytearray(self._sealer.seal(bytes(data), place))

    def _open(self, data: bytes, place: bytes) -> bytes:
        if self._sealer is None or not isinstance(data, bytes):
            return data
        return self._sealer.open(data, place)


def _make(path: Path) -> None:
    """Make the file for its owner alone, for it will hold prompts.

    Made by root, as by `sudo edge-worker check`, it is whose the folder is: or the worker could
    not use it afterwards. SQLite does the same with what it puts beside it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.geteuid() == 0:
            folder = path.parent.stat()
            with suppress(PermissionError):  # Root of a container need not be allowed to.
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
    finally:
        os.close(descriptor)


def _check(database: Database) -> None:
    """Look at every page: damage that is met later would keep the worker from starting."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _DamagedError(found)


def open_sealer(key_file: str | None) -> Sealer | None:
    """Return what seals with the keys of a file; None: no file is named.

    Raises:
        ConfigError: The file cannot be used, or `cryptography` is not installed.
    """
    if key_file is None:
        return None
    try:
        # Only here: a spool that is not sealed needs no cryptography.
        from fleet_pki.sealing import KeyRing, RecordSealer  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ConfigError(
            f"spool_key_file needs cryptography, which cannot be loaded: {error}",
            hint="pip install 'edgefleet[edge]'",
        ) from error
    return RecordSealer(KeyRing.read(Path(key_file)))


def _place(*parts: object) -> bytes:
    """Name where something is kept: sealed for there, it opens nowhere else."""
    return ":".join(map(str, parts)).encode()


def _encode(value: Assignment | Outcome) -> bytearray:
    """Return JSON as SQLite's driver takes it at once: it asks all around how to adapt `bytes`."""
    data = bytearray()
    _encoder.encode_into(value, data)
    return data
