"""How the job store's file gets smaller again while it is in use."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import structlog

from cloud_dispatcher.adapters.connection_sqlite import Connection

_log = structlog.get_logger(__name__)

_INCREMENTAL: Final = 2
_KEPT_SHARE: Final = 0.1
_KEPT_BYTES: Final = 4_194_304
_STEP_BYTES: Final = 1_048_576
"""Given back in one go: some milliseconds, in which no commit can begin."""
_LOG_MOST_BYTES: Final = 67_108_864


def allow_shrinking(conn: sqlite3.Connection, path: Path) -> None:
    """Let pages be given back one by one, and the log be cut after a peak.

    A file of an earlier release is written anew for that, once, before the dispatcher begins; it
    needs as much space again meanwhile. Where there is none, the file stays as it was.
    """
    conn.execute(f"PRAGMA journal_size_limit = {_LOG_MOST_BYTES}")
    if _figure(conn, "auto_vacuum") == _INCREMENTAL:
        return
    try:
        conn.execute("PRAGMA auto_vacuum = incremental")
        conn.execute("VACUUM")
    except sqlite3.OperationalError as error:
        _log.warning("store.not_rewritten", path=str(path), error=str(error))


async def give_back(writer: Connection, *, most_bytes: int) -> int:
    """Return free pages to the system, but for a tenth of the file, and return how much it was.

    The tenth stays: the next jobs fill it without growing the file again.
    """
    given = 0
    while given < most_bytes:
        step = await writer.run(_shrink)
        if step == 0:
            break
        given += step
    return given


def _shrink(conn: sqlite3.Connection) -> int:
    page_bytes, free = _figure(conn, "page_size"), _figure(conn, "freelist_count")
    kept = max(_KEPT_SHARE * _figure(conn, "page_count"), _KEPT_BYTES / page_bytes)
    pages = int(min(free - kept, _STEP_BYTES / page_bytes))
    if pages <= 0 or _figure(conn, "auto_vacuum") != _INCREMENTAL:
        return 0
    # A statement that gives one row a page: who does not read them all stops it half-way.
    conn.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    return (free - _figure(conn, "freelist_count")) * page_bytes


def _figure(conn: sqlite3.Connection, name: str) -> int:
    (value,) = conn.execute(f"PRAGMA {name}").fetchone()
    return int(value)
