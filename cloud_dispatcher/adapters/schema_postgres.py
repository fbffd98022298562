"""The tables of the job store on PostgreSQL: made and renewed by whoever opens it first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final

import psycopg

from cloud_dispatcher.adapters.connection_postgres import Conn, Link
from cloud_dispatcher.adapters.named_sql import read_statements
from fleet_protocol.errors import ConfigError

_OLDEST_SERVER: Final = 140_000
_STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "001_jobs": (
        "jobs_table", "jobs_device_id", "jobs_untold", "jobs_kept", "jobs_trouble",
        "spending_table", "cache_table", "writers_table", "note_turn_function",
    ),
    "002_cluster": (
        "members_table", "graves_table", "claims_table", "boards_table", "jobs_owner", "jobs_given",
        "require_member_function", "note_turn_as_member_function", "bury_function",
        "join_function", "beat_function", "claim_names_function",
    ),
    "003_keys": ("spending_keys",),
}  # fmt: skip
"""The schema's history. A released step never changes: a new one is added below it."""


@cache
def statements() -> Mapping[str, str]:
    """Return every statement of `queries/postgres*.sql` by its name."""
    return {**read_statements("postgres.sql"), **read_statements("postgres_cluster.sql")}


async def migrate(conn: Conn, where: str) -> None:
    """Bring the tables to this release, all steps in one transaction.

    Raises:
        ConfigError: A newer release wrote it, or the server or the database cannot be used.
    """
    _check_server(conn, where)
    texts = statements()
    with _rights_needed(conn, where):
        async with conn.transaction():
            await conn.execute(texts["lock_migrations"].encode())
            applied = await _applied(conn, where)
            for name, parts in _STEPS.items():
                if name in applied:
                    continue
                await conn.execute(texts["migrations_table"].encode())
                for part in parts:
                    await conn.execute(texts[part].encode())
                await conn.execute(texts["note_migration"].encode(), (name,))


async def look(link: Link) -> str:
    """Look whether the store can be used as it is, without changing it; say what is there.

    Raises:
        StoreUnavailableError: It cannot be written now.
        ConfigError: It cannot be used as things are set.
    """

    async def work(conn: Conn) -> str:
        _check_server(conn, link.where)
        with _rights_needed(conn, link.where):
            applied = await _applied(conn, link.where)
        (rights,) = await _row(conn, "may_write" if applied else "may_make")
        if not rights:
            raise _no_rights(conn, link.where)
        (version, synced) = await _row(conn, "server")
        found = f"PostgreSQL {version} at {link.where}"
        found += " can be written" if applied else ": the tables will be made"
        return found if synced else f"{found}; but fsync is off: a power cut may take everything"

    return await link.run(work, patience_s=10.0)


async def _applied(conn: Conn, where: str) -> set[str]:
    """Return the steps that were made; raises ConfigError if there are some that we do not know."""
    (there,) = await _row(conn, "has_migrations")
    if not there:
        return set()
    found = await (await conn.execute(statements()["migrations"].encode())).fetchall()
    applied = {str(name) for (name,) in found}
    newer = applied - _STEPS.keys()
    if newer:
        raise ConfigError(
            f"{where} was written by a newer release ({', '.join(sorted(newer))})",
            hint="install that release again, or name another database",
        )
    return applied


@contextmanager
def _rights_needed(conn: Conn, where: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise _no_rights(conn, where) from error


def _no_rights(conn: Conn, where: str) -> ConfigError:
    return ConfigError(
        f"the role {conn.info.user} may not make or write the tables in {where}",
        hint="make it the owner of the database and its tables, see docs/postgresql.md",
    )


def _check_server(conn: Conn, where: str) -> None:
    version = conn.info.server_version
    if version < _OLDEST_SERVER:
        raise ConfigError(
            f"the server of {where} is PostgreSQL {version // 10_000}",
            hint=f"use PostgreSQL {_OLDEST_SERVER // 10_000} or newer",
        )
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigError(
            f"the database {where} is encoded in {encoding}",
            hint="make it with ENCODING 'UTF8' TEMPLATE template0",
        )


async def _row(conn: Conn, name: str) -> tuple[object, ...]:
    found = await (await conn.execute(statements()[name].encode())).fetchone()
    return found or ()
