"""The table of what the cloud cost, in the job store's file. All SQL is in `queries/jobs.sql`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from msgspec.structs import astuple, fields

from cloud_dispatcher.core.spending import Spend

_COLUMNS = [field.name for field in fields(Spend)]


def add_spends(conn: sqlite3.Connection, sql: Mapping[str, str], spends: Sequence[Spend]) -> None:
    """Add to the rows of the same day and purpose, within the caller's transaction."""
    conn.executemany(sql["add_spend"], [astuple(spend) for spend in spends])


def read_spends(conn: sqlite3.Connection, sql: Mapping[str, str], since_day: int) -> list[Spend]:
    """Return all rows from that day on, oldest first."""
    rows = conn.execute(sql["spends"], (since_day,)).fetchall()
    return [Spend(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]
