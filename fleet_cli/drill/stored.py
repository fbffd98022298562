"""What the dispatcher's file says, read without any of the dispatcher's code."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from fleet_cli.drill.ledger import JobName
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import JobResult, JobStatus

_ROWS = """
    SELECT j.device, j.id, j.status, j.received_at_ms, j.attempt, j.told, a.result
    FROM jobs j LEFT JOIN answers a ON a.key = j.key
"""
_decode_result = msgspec.msgpack.Decoder(JobResult).decode


class StoreUnreadableError(FleetError):
    """The dispatcher's file cannot be read."""

    code = "store_unreadable"


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job in the file.

    Attributes:
        received_at_ms: By the clock of the dispatcher that accepted it.
        told: Whether the broker has confirmed its result.
    """

    device: str
    id: str
    status: JobStatus
    received_at_ms: int
    attempt: int
    told: bool
    result: JobResult | None


def read_store(path: Path) -> dict[JobName, StoredJob]:
    """Return every job in the file of a dispatcher that has ended.

    Raises:
        StoreUnreadableError: It is damaged, or not there.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as db:
            damage = db.execute("PRAGMA quick_check").fetchone()[0]
            if damage != "ok":
                raise StoreUnreadableError(f"{path} is damaged: {damage}", hint="keep the file")
            return {(row[0], row[1]): _stored(row) for row in db.execute(_ROWS)}
    except (sqlite3.Error, msgspec.DecodeError) as error:
        raise StoreUnreadableError(f"{path}: {error}", hint="read the dispatcher's log") from error


def _stored(row: tuple[str, str, str, int, int, int, bytes | None]) -> StoredJob:
    device, job, status, received_at_ms, attempt, told, result = row
    return StoredJob(
        device=device,
        id=job,
        status=JobStatus(status),
        received_at_ms=received_at_ms,
        attempt=attempt,
        told=bool(told),
        result=None if result is None else _decode_result(result),
    )
