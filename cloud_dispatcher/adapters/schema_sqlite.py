"""The schema of the SQLite file: its statements, and how an older file becomes a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sqlite_utils import Database, Migrations

from cloud_dispatcher.adapters.named_sql import read_statements
from fleet_protocol.errors import ConfigError

_MIGRATION_SET: Final = "cloud_dispatcher.jobs"
_STEPS: Final = frozenset({"001_jobs", "002_spending", "003_cache", "004_dead", "005_keys"})


def statements() -> Mapping[str, str]:
    """Return every statement of `queries/jobs.sql` by its name."""
    return read_statements("jobs.sql")


def migrate(conn: sqlite3.Connection, path: Path) -> None:
    """Make the schema, or bring that of an earlier release up to date.

    Raises:
        ConfigError: A newer release wrote the file.
    """
    check_history(conn, path)
    _migrations().apply(Database(conn, execute_plugins=False))


def check_history(conn: sqlite3.Connection, path: Path) -> None:
    """Raise ConfigError if a newer release wrote the file."""
    db = Database(conn, execute_plugins=False)
    newer = {step.name for step in _migrations().applied(db)} - _STEPS
    if newer:
        raise ConfigError(
            f"{path} was written by a newer release ({', '.join(sorted(newer))})",
            hint="install that release again, or name another file",
        )


def _migrations() -> Migrations:
    """The schema's history. A released step never changes: a new one is added below it."""
    steps = Migrations(_MIGRATION_SET)

    @steps(name="001_jobs")
    def _jobs(db: Database) -> None:
        for name, statement in statements().items():
            if name.startswith(("create_", "index_")):
                db.execute(statement)

    @steps(name="002_spending")
    def _spending(db: Database) -> None:
        db.execute(statements()["spending_table"])

    @steps(name="003_cache")
    def _cache(db: Database) -> None:
        db.execute(statements()["cache_table"])

    @steps(name="004_dead")
    def _dead(db: Database) -> None:
        db.execute(statements()["drop_finished"])
        db.execute(statements()["kept_index"])

    @steps(name="005_keys")
    def _keys(db: Database) -> None:
        for name in ("with_keys_table", "copied", "dropped", "renamed"):
            db.execute(statements()[f"spending_{name}"])

    return steps
