"""One connection to PostgreSQL that comes back by itself; its errors as ours.

The only modules that import psycopg are this one and those that stand on it; they are imported only
where the store is PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryDumper

from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.ports import StoreUnavailableError
from fleet_protocol.errors import ConfigError

_R = TypeVar("_R")
Conn: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
Cursor: TypeAlias = psycopg.AsyncCursor[tuple[Any, ...]]

_LINK_DEFAULTS: Final[dict[str, str | int]] = {
    "fallback_application_name": "cloud-dispatcher",
    "connect_timeout": 5,
    # A server that is gone without a word is noticed after a quarter of a minute.
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
    # Of several hosts the one that can be written; a standby alone is refused with a clear word.
    "target_session_attrs": "read-write",
}
_SESSION: Final = b"""
SET client_min_messages = warning;
SET lock_timeout = '5s';
SET statement_timeout = '10min';
SET idle_in_transaction_session_timeout = '30s';
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 2
"""
"""What a dispatcher that is gone leaves open must not hold up another one."""

FENCED_HINT: Final = "it starts anew by itself; see docs/cluster.md if that happens again"
_DISK_FULL: Final = "53100"
_HINTS: Final = {
    _DISK_FULL: "free some space on the database server's disk; it goes on by itself",
    "53200": "the database server is out of memory; it goes on by itself",
    "53300": "raise the server's max_connections, or end other clients; it goes on by itself",
    "25006": "this server takes no writes (a standby?): name the primary in store.url",
    "42501": "give the dispatcher's role its rights on the tables, see docs/postgresql.md",
    "40001": "another session changed the same rows; it goes on by itself",
    "40P01": "another session changed the same rows; it goes on by itself",
    "55P03": "another session holds the rows for long: look into pg_stat_activity",
    "57014": "the server ended the statement; it goes on by itself",
}
_FAILED_HINT: Final = "look into the database server's log; it goes on by itself"
_UNREACHABLE_HINT: Final = (
    "check that the server runs, and the host, database, role and password of store.url;"
    " it goes on by itself"
)
_FENCED: Final = frozenset({"UF002", "UF003"})
"""Raised by functions of `queries/postgres_cluster.sql`."""
_PASSING_CLASSES: Final = frozenset({"08", "40", "53", "55", "57", "58", "F0", "XX", "UF"})
"""Of SQLSTATE: connection, rollback, resources, locks, intervention, system, internal, our own."""


class Link:
    """One connection, one user at a time.

    A connection on which anything failed is dropped, and with it what it had begun; the next call
    makes a new one. Nothing is tried twice here: that is for the caller, who knows what it means.

    Attributes:
        where: For people, without secrets.

    Args:
        url: As libpq reads it; a password comes from elsewhere.
        password: Asked at each connection; None: libpq looks into PGPASSWORD and the password file.
        session: Settings of each connection, as SQL.
        greet: Done on each new connection before anything else.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(
        self,
        url: str,
        *,
        password: Callable[[], str | None] = lambda: None,
        session: bytes = b"",
        greet: Callable[[Conn], Awaitable[None]] | None = None,
    ) -> None:
        self.where = described(url)
        self._url = url
        self._password = password
        self._session = _SESSION + b";" + session if session else _SESSION
        self._greet = greet
        self._lock = asyncio.Lock()
        self._conn: Conn | None = None

    async def run(self, work: Callable[[Conn], Awaitable[_R]], *, patience_s: float = 60.0) -> _R:
        """Do something with the connection.

        Raises:
            StoreUnavailableError: It may work later. What was begun is rolled back, unless it was
                the very end of a transaction: then nobody knows, see `PostgresJobStore.commit`.
            MemberFencedError: We are no member any more.
            ConfigError: The server will not have us as things are set.
        """
        async with self._lock:
            try:
                conn = await self._connected(patience_s)
                return await _within(patience_s, conn, work)
            except BaseException as error:
                await self._drop()
                if isinstance(error, psycopg.Error) and is_passing(error):
                    raise mapped(error, self.where) from error
                raise

    async def close(self) -> None:
        """Disconnect; a second time: no effect."""
        async with self._lock:
            await self._drop()

    async def _connected(self, patience_s: float) -> Conn:
        if self._conn is not None and not _has_news(self._conn):
            return self._conn
        await self._drop()
        given = conninfo_to_dict(self._url)
        defaults = {name: value for name, value in _LINK_DEFAULTS.items() if name not in given}
        secret = self._password()
        if secret is not None:
            defaults["password"] = secret
        words = make_conninfo(self._url, **defaults)
        conn = await psycopg.AsyncConnection.connect(words, autocommit=True)
        self._conn = conn
        # One form for all whole numbers, or each size of a number would be a statement of its own.
        conn.adapters.register_dumper(int, Int8BinaryDumper)
        await _within(patience_s, conn, self._begin)
        return conn

    async def _begin(self, conn: Conn) -> None:
        await conn.execute(self._session)
        if self._greet is not None:
            await self._greet(conn)

    async def _drop(self) -> None:
        if self._conn is not None:
            conn, self._conn = self._conn, None
            await conn.close()


async def _within(patience_s: float, conn: Conn, work: Callable[[Conn], Awaitable[_R]]) -> _R:
    """Hang up after that time: what still waits then fails as with any lost connection."""
    late = asyncio.get_running_loop().call_later(patience_s, _hang_up, conn)
    try:
        return await work(conn)
    finally:
        late.cancel()


def _hang_up(conn: Conn) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(conn.fileno())) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)


def _has_news(conn: Conn) -> bool:
    """Whether an idle connection has something to read: a farewell, as a rule, or its end."""
    if conn.closed:
        return True
    news = select.poll()
    news.register(conn.fileno(), select.POLLIN)
    return bool(news.poll(0))


def is_passing(error: psycopg.Error) -> bool:
    """Whether it may work later; the rest are defects of ours."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate[:2] in _PASSING_CLASSES or error.sqlstate in _HINTS


def mapped(error: psycopg.Error, where: str) -> StoreUnavailableError | MemberFencedError:
    """Return an error of the server as one of ours, with what to do about it."""
    if error.sqlstate in _FENCED:
        said = error.diag.message_primary or "we are no member any more"
        return MemberFencedError(f"{said}: others have our jobs and workers", hint=FENCED_HINT)
    hint = _HINTS.get(error.sqlstate or "")
    if hint is None:
        hint = _FAILED_HINT if error.sqlstate else _UNREACHABLE_HINT
    words = " ".join(str(error).split())
    return StoreUnavailableError(f"the job store {where} failed: {words}", hint=hint)


def described(url: str) -> str:
    """Return where it is, for people, without secrets.

    Raises:
        ConfigError: It is none that libpq understands.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigError(
            f"store.url is not understood: {' '.join(str(error).split())}",
            hint="write it as postgresql://ROLE@HOST:PORT/DATABASE",
        ) from error
    host, port = given.get("host"), given.get("port")
    place = f"{host or ''}{f':{port}' if port else ''}"
    return f"postgresql://{place}/{given.get('dbname') or ''}"
