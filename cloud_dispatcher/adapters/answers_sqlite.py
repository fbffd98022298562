"""The table of cached answers, in the job store's file. All SQL is in `queries/jobs.sql`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cloud_dispatcher.adapters.job_rows import Blobs, encode_answer, read_answer
from cloud_dispatcher.core.commands import AnswerChange, ForgetAnswers, KeepAnswer, UseAnswer
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.messages import CacheRow

_ROOM_SHARE: Final = 0.9
"""What is full is emptied to this share, so that not every commit has to look for the oldest."""


class AnswerTable:
    """Keeps the table within a bound of bytes; used within the writer's transactions alone."""

    def __init__(self, sql: Mapping[str, str], *, max_bytes: int, blobs: Blobs) -> None:
        self._sql = sql
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._bytes: int | None = None
        """At least what is there: a replaced answer counts until all are counted again."""

    def change(self, conn: sqlite3.Connection, changes: Sequence[AnswerChange]) -> None:
        """Keep and count as used; what is not used for longest makes room."""
        for index, change in enumerate(changes):
            if isinstance(change, ForgetAnswers):
                conn.execute(self._sql["cache_clear"])
                self._bytes = 0
                self.change(conn, changes[index + 1 :])
                return
        kept = [change for change in changes if isinstance(change, KeepAnswer)]
        used = [(x.at_ms, x.key) for x in changes if isinstance(x, UseAnswer)]
        fit = [change for change in kept if change.answer.size_bytes <= self._max_bytes]
        rows = [_row(change, self._blobs) for change in fit]
        conn.executemany(self._sql["cache_keep"], rows)
        conn.executemany(self._sql["cache_use"], used)
        if rows:
            grown = sum(change.answer.size_bytes for change in kept)
            self._bytes = self._count(conn) if self._bytes is None else self._bytes + grown
            if self._bytes > self._max_bytes:
                self._make_room(conn)

    def forget_bytes(self) -> None:
        """Count anew next time: the transaction was rolled back, or rows were deleted."""
        self._bytes = None

    def _make_room(self, conn: sqlite3.Connection) -> None:
        left_bytes, gone = self._count(conn), list[tuple[bytes]]()
        if left_bytes > self._max_bytes:
            for key, size_bytes in conn.execute(self._sql["cache_oldest"]):
                if left_bytes <= self._max_bytes * _ROOM_SHARE:
                    break
                left_bytes -= size_bytes
                gone.append((key,))
            conn.executemany(self._sql["cache_forget"], gone)
        self._bytes = left_bytes

    def _count(self, conn: sqlite3.Connection) -> int:
        return int(conn.execute(self._sql["cache_bytes"]).fetchone()[0])


def read_answers(
    conn: sqlite3.Connection, sql: Mapping[str, str], keys: Iterable[bytes], blobs: Blobs
) -> dict[bytes, CachedAnswer]:
    """Return those that exist."""
    rows = ((key, conn.execute(sql["cache_find"], (key,)).fetchone()) for key in keys)
    return {key: read_answer(key, row[0], blobs) for key, row in rows if row is not None}


def read_usage(conn: sqlite3.Connection, sql: Mapping[str, str]) -> list[CacheRow]:
    """Return how many answers of each tenant there are, and how often they were given."""
    columns = ("tenant", "answers", "size_bytes", "hits")
    rows = conn.execute(sql["cache_usage"]).fetchall()
    return [CacheRow(**dict(zip(columns, row, strict=True))) for row in rows]


def _row(change: KeepAnswer, blobs: Blobs) -> tuple[object, ...]:
    answer = change.answer
    return (
        answer.key,
        change.tenant,
        encode_answer(answer, blobs),
        answer.size_bytes,
        answer.until_at_ms,
        answer.made_at_ms,
    )
