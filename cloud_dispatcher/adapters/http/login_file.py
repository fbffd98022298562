"""Who is logged in, on the disk: a restart of the dispatcher ends nobody's login.

Nothing in it opens anything: of the secret of a cookie, 256 random bits, there are two digests. One
finds the row. The other is keyed by what the file of users says of the user, so that a row is worth
nothing once they are changed or removed, nor if somebody wrote it who cannot read that file.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog
from msgspec.structs import astuple

from cloud_dispatcher.adapters.connection_sqlite import Connection, connected
from fleet_protocol.errors import FleetError

_log = structlog.get_logger(__name__)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS logins (
  name TEXT NOT NULL PRIMARY KEY,
  user TEXT NOT NULL,
  proof TEXT NOT NULL,
  since_at_ms INTEGER NOT NULL,
  used_at_ms INTEGER NOT NULL
) WITHOUT ROWID
"""
_ALL: Final = "SELECT name, user, proof, since_at_ms, used_at_ms FROM logins ORDER BY since_at_ms"
_KEEP: Final = "INSERT OR REPLACE INTO logins VALUES (?, ?, ?, ?, ?)"
_FORGET: Final = "DELETE FROM logins WHERE name = ?"


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A login as it is kept.

    Attributes:
        name: Digest of the cookie's secret.
        user: Whose it is.
        proof: Digest of the secret, keyed by what the user was at the login.
        since_at_ms: When it began.
        used_at_ms: When it was used last, or some minutes before.
    """

    name: str
    user: str
    proof: str
    since_at_ms: int
    used_at_ms: int


class LoginFile:
    """The file, from entering to leaving.

    A file that cannot be read or written keeps nobody from logging in or out: what is to be changed
    is kept in memory, logged, and tried again with the next change.

    Attributes:
        found: The logins of earlier runs, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = Connection(path, "logins")
        self._changes: dict[str, Login | None] = {}
        self._saving: asyncio.Task[None] | None = None
        self._is_open = False
        self.found: tuple[Login, ...] = ()

    async def __aenter__(self) -> Self:
        with _logged("logins.not_read", "who was logged in must log in again"):
            await self._connection.open(partial(connected, self._path, _SCHEMA))
            rows = await self._connection.run(lambda conn: conn.execute(_ALL).fetchall())
            self.found = tuple(
                Login(name=name, user=user, proof=proof, since_at_ms=since, used_at_ms=used)
                for name, user, proof, since, used in rows
            )
            self._is_open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.save()
        await self._connection.close()

    def put(self, login: Login) -> None:
        """Let the file have this login, once it is saved."""
        self._change(login.name, login)

    def drop(self, name: str) -> None:
        """Let the file have it no more, once that is saved."""
        self._change(name, None)

    def _change(self, name: str, login: Login | None) -> None:
        if self._is_open:
            self._changes[name] = login

    async def save(self) -> None:
        """Write what was changed; it is on the disk on return, or logged."""
        self.save_soon()
        if self._saving is not None:
            await asyncio.shield(self._saving)

    def save_soon(self) -> None:
        """Write what was changed without anybody waiting for it."""
        if self._saving is None:
            self._saving = asyncio.create_task(self._save_all(), name="logins")

    async def _save_all(self) -> None:
        """Write until nothing is left: one at a time, or what failed could undo what came after."""
        try:
            while self._changes:
                changes, self._changes = self._changes, {}
                is_saved = False
                with _logged("logins.not_saved", "the next login or logout tries it again"):
                    await self._connection.run(partial(_write, changes=changes))
                    is_saved = True
                if not is_saved:
                    self._changes = changes | self._changes
                    return
        finally:
            self._saving = None


@contextmanager
def _logged(event: str, what_then: str) -> Iterator[None]:
    try:
        yield
    except FleetError as error:
        _log.error(event, error=str(error), hint=error.hint, what_then=what_then)


def _write(conn: sqlite3.Connection, changes: Mapping[str, Login | None]) -> None:
    """Make the changes in one transaction."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        for name, login in changes.items():
            if login is None:
                conn.execute(_FORGET, (name,))
            else:
                conn.execute(_KEEP, astuple(login))
        conn.execute("COMMIT")
    except sqlite3.Error:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
