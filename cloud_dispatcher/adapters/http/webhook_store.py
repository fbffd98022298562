"""Which calls are owed: a file of their own, for they must outlive a restart and no job."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from cloud_dispatcher.adapters.connection_sqlite import Connection, connected
from fleet_protocol.messages import DeviceId, JobId

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS webhooks (
  device TEXT NOT NULL,
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  url TEXT NOT NULL,
  tries INTEGER NOT NULL,
  due_at_ms INTEGER,
  PRIMARY KEY (device, id)
) WITHOUT ROWID
"""
_KEEP: Final = """
INSERT INTO webhooks (device, id, tenant, url, tries, due_at_ms) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (device, id) DO UPDATE
SET url = excluded.url, tries = excluded.tries, due_at_ms = excluded.due_at_ms
"""
_FORGET: Final = "DELETE FROM webhooks WHERE device = ? AND id = ?"
_ALL: Final = "SELECT device, id, tenant, url, tries, due_at_ms FROM webhooks"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is owed for a job.

    Attributes:
        tries: How often it failed.
        due_at_ms: When it is made; None: when the job is over.
    """

    device: DeviceId
    id: JobId
    tenant: str
    url: str
    tries: int = 0
    due_at_ms: int | None = None


class WebhookStore:
    """The file. What was kept is on the disk once `keep` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = Connection(path, "webhooks")

    async def open(self) -> list[Webhook]:
        """Open it, and return what is owed; raises as `Connection.run` does."""
        await self._connection.open(partial(connected, self._path, _SCHEMA))
        rows = await self._connection.run(lambda conn: conn.execute(_ALL).fetchall())
        return [
            Webhook(
                device=DeviceId(device), id=JobId(id_), tenant=tenant, url=url, tries=tries,
                due_at_ms=due_at_ms,
            )
            for device, id_, tenant, url, tries, due_at_ms in rows
        ]  # fmt: skip

    async def keep(self, hook: Webhook) -> None:
        """Keep a call, or what became of it so far."""
        row = (hook.device, hook.id, hook.tenant, hook.url, hook.tries, hook.due_at_ms)

        def work(conn: sqlite3.Connection) -> None:
            conn.execute(_KEEP, row)

        await self._connection.run(work)

    async def forget(self, hook: Webhook) -> None:
        """Owe it no more."""

        def work(conn: sqlite3.Connection) -> None:
            conn.execute(_FORGET, (hook.device, hook.id))

        await self._connection.run(work)

    async def close(self) -> None:
        """Close the file."""
        await self._connection.close()
