"""One connection to a file of SQLite's, in a thread of its own; its errors as ours."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from cloud_dispatcher.ports import StoreUnavailableError
from fleet_protocol.errors import ConfigError, FleetError

_R = TypeVar("_R")
_HINTS: Final = {
    sqlite3.SQLITE_FULL: "free some disk space; it goes on by itself",
    sqlite3.SQLITE_BUSY: "another program holds the file: end it; it goes on by itself",
    sqlite3.SQLITE_LOCKED: "another program holds the file: end it; it goes on by itself",
    sqlite3.SQLITE_READONLY: "give the dispatcher's user write access to the file and its folder",
    sqlite3.SQLITE_PERM: "give the dispatcher's user write access to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "check that the folder exists and may be written",
    sqlite3.SQLITE_IOERR: "check the disk and its mount",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: stop, recover it with `sqlite3 FILE .recover`",
}


class Connection:
    """One connection and the one named thread that uses it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._conn: sqlite3.Connection | None = None

    async def open(self, connect: Callable[[], sqlite3.Connection]) -> None:
        """Connect; raises as `run` does."""

        def work() -> None:
            self._conn = connect()

        await self._in_thread(work)

    async def run(self, work: Callable[[sqlite3.Connection], _R]) -> _R:
        """Do something with the connection.

        Raises:
            StoreUnavailableError: It may work later.
            ConfigError: The file is no database.
        """
        return await self._in_thread(lambda: work(self._opened()))

    async def close(self) -> None:
        """Disconnect; a second time: no effect."""
        if self._conn is not None:
            await self._in_thread(self._conn.close)
            self._conn = None
        self._executor.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], _R]) -> _R:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a defect of ours: to wait for it to pass would be to wait for ever
        except (sqlite3.Error, OSError) as error:
            raise mapped(error, self._path) from error

    def _opened(self) -> sqlite3.Connection:
        if self._conn is None:
            raise sqlite3.ProgrammingError("the store is not open")
        return self._conn


def make_private(path: Path) -> None:
    """Make a file that its owner alone may read, if there is none; SQLite's others get its rights.

    Never while a connection is open: to close any descriptor of the file drops the locks of the
    whole process on it, and then another program may delete the log under us.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def connected(path: Path, schema: str) -> sqlite3.Connection:
    """Open a private file of few rows, each of them on the disk once it is written."""
    make_private(path)
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute(schema)
    except BaseException:
        conn.close()
        raise
    return conn


def mapped(error: sqlite3.Error | OSError, path: Path) -> FleetError:
    """Return an error of the file as one of ours, with what to do about it."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigError(
            f"{path} is no database of ours: {error}",
            hint="name another file, or move this one away",
        )
    hint = _HINTS.get(code, "check the disk, the folder and its rights")
    return StoreUnavailableError(f"the database {path} failed: {error}", hint=hint)
