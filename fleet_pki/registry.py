"""Who is enrolled, with which certificates, passwords and tokens: one SQLite file.

The command line and the dispatcher may use it at the same time: what belongs together is one
transaction, and the second one waits for the first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import msgspec

from fleet_pki.files import make_private
from fleet_protocol.access import Identity
from fleet_protocol.errors import RetryableError
from fleet_protocol.topics import Role

_BUSY_S: Final = 10.0
_AHEAD_MS: Final = 1_800_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS identities (
  id TEXT PRIMARY KEY,
  role TEXT NOT NULL,
  enrolled_at_ms INTEGER NOT NULL,
  revoked_at_ms INTEGER,
  password_hash TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS certificates (
  serial TEXT PRIMARY KEY,
  id TEXT NOT NULL REFERENCES identities (id),
  key_digest BLOB NOT NULL,
  chain BLOB NOT NULL,
  issued_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER NOT NULL,
  revoked_at_ms INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS certificates_by_id ON certificates (id, issued_at_ms);
CREATE TABLE IF NOT EXISTS tokens (
  digest BLOB PRIMARY KEY,
  id TEXT NOT NULL REFERENCES identities (id),
  expires_at_ms INTEGER NOT NULL,
  used_at_ms INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS revocation_list (updated_at_ms INTEGER NOT NULL) STRICT;
"""


class RegistryUnavailableError(RetryableError):
    """The registry cannot be read or written now."""

    code = "registry_unavailable"


class Secret(StrEnum):
    """By what an identity is known to the broker."""

    CERTIFICATE = "certificate"
    PASSWORD = "password"  # noqa: S105  # a word, not one
    TOKEN = "token"  # noqa: S105  # same


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An identity as the registry knows it.

    Attributes:
        password_hash: As Mosquitto keeps it; None if it has no password. A worker's is its unused
            token: with it, it may ask for its first certificate and do nothing else.
        expires_at_ms: Of its latest certificate that is not revoked; None if there is none.
    """

    identity: Identity
    enrolled_at_ms: int
    revoked_at_ms: int | None = None
    password_hash: str | None = None
    expires_at_ms: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether it may do anything at all."""
        return self.revoked_at_ms is None


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that was issued, with those that lead to the root, as PEM."""

    serial: int
    id: str
    key_digest: bytes
    chain: bytes
    issued_at_ms: int
    expires_at_ms: int


class Token(msgspec.Struct, frozen=True):
    """A one-time token as the registry knows it: not the token itself."""

    id: str
    expires_at_ms: int
    used_at_ms: int | None


class Registry:
    """The registry's file. Lifetime is `with`; changes happen inside `transaction`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        with self._mapped():
            make_private(self._path)
            self._db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of it or nothing; raises RegistryUnavailableError."""
        with self._mapped():
            self._execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with self._mapped():
                self._execute("ROLLBACK")
            raise
        with self._mapped():
            self._execute("COMMIT")

    # ---------------------------------------------------------------- identities

    def member(self, identity_id: str) -> Member | None:
        """Return one identity."""
        rows = self._members("WHERE i.id = ?", identity_id)
        return rows[0] if rows else None

    def members(self) -> list[Member]:
        """Return all identities, by role and id."""
        return self._members("")

    def put_member(self, member: Member) -> None:
        """Write an identity, anew or in place of the one with its id."""
        self._execute(
            """
            INSERT INTO identities (id, role, enrolled_at_ms, revoked_at_ms, password_hash)
            VALUES (?, ?, ?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET role = excluded.role,
              enrolled_at_ms = excluded.enrolled_at_ms, revoked_at_ms = excluded.revoked_at_ms,
              password_hash = excluded.password_hash
            """,
            member.identity.id,
            member.identity.role,
            member.enrolled_at_ms,
            member.revoked_at_ms,
            member.password_hash,
        )

    def withdraw(self, identity_id: str, now_ms: int) -> None:
        """Revoke all certificates of an identity and forget its unused tokens."""
        self._execute(
            "UPDATE certificates SET revoked_at_ms = ? WHERE id = ? AND revoked_at_ms IS NULL",
            now_ms,
            identity_id,
        )
        self._execute("DELETE FROM tokens WHERE id = ?", identity_id)

    # ---------------------------------------------------------------- certificates

    def add_certificate(self, issued: Issued) -> None:
        """Write down a certificate before anybody gets it."""
        self._execute(
            """
            INSERT INTO certificates (serial, id, key_digest, chain, issued_at_ms, expires_at_ms)
            VALUES (?, ?, ?, ?, ?, ?)
            """,
            f"{issued.serial:x}",
            issued.id,
            issued.key_digest,
            issued.chain,
            issued.issued_at_ms,
            issued.expires_at_ms,
        )

    def certificate_of(self, identity_id: str, key_digest: bytes) -> Issued | None:
        """Return the latest certificate of an identity for a key, unless it is revoked."""
        row = self._execute(
            """
            SELECT serial, id, key_digest, chain, issued_at_ms, expires_at_ms FROM certificates
            WHERE id = ? AND key_digest = ? AND revoked_at_ms IS NULL
            ORDER BY issued_at_ms DESC, rowid DESC LIMIT 1
            """,
            identity_id,
            key_digest,
        ).fetchone()
        if row is None:
            return None
        return Issued(
            serial=int(row[0], 16),
            id=row[1],
            key_digest=row[2],
            chain=row[3],
            issued_at_ms=row[4],
            expires_at_ms=row[5],
        )

    def revoked(self, *, since_ms: int) -> list[tuple[int, int]]:
        """Return serial and instant of the revoked certificates that had not expired by then."""
        rows = self._execute(
            """
            SELECT serial, revoked_at_ms FROM certificates
            WHERE revoked_at_ms IS NOT NULL AND expires_at_ms >= ? ORDER BY rowid
            """,
            since_ms,
        )
        return [(int(serial, 16), at_ms) for serial, at_ms in rows]

    def date_revocations(self, now_ms: int) -> int:
        """Return the date of a new revocation list: now, but a second later than the last one's.

        Never more than half an hour ahead: a clock that was wrong once must not decide for ever.
        """
        row = self._execute("SELECT max(updated_at_ms) FROM revocation_list").fetchone()
        at_ms = max(now_ms, min((row[0] or 0) + 1_000, now_ms + _AHEAD_MS))
        self._execute("DELETE FROM revocation_list")
        self._execute("INSERT INTO revocation_list VALUES (?)", at_ms)
        return int(at_ms)

    def forget_expired(self, *, before_ms: int) -> None:
        """Forget certificates that expired before an instant: renewals must not fill the disk."""
        self._execute("DELETE FROM certificates WHERE expires_at_ms < ?", before_ms)

    # ---------------------------------------------------------------- tokens

    def add_token(self, digest: bytes, token: Token) -> None:
        """Write down a token, by its digest; an earlier one of the identity is void."""
        self._execute("DELETE FROM tokens WHERE id = ?", token.id)
        self._execute(
            "INSERT INTO tokens (digest, id, expires_at_ms, used_at_ms) VALUES (?, ?, ?, ?)",
            digest,
            token.id,
            token.expires_at_ms,
            token.used_at_ms,
        )

    def token(self, digest: bytes) -> Token | None:
        """Return what is known of a token."""
        row = self._execute(
            "SELECT id, expires_at_ms, used_at_ms FROM tokens WHERE digest = ?", digest
        ).fetchone()
        return None if row is None else Token(*row)

    def token_of(self, identity_id: str) -> Token | None:
        """Return what is known of an identity's token: it has one at most."""
        row = self._execute(
            "SELECT id, expires_at_ms, used_at_ms FROM tokens WHERE id = ?", identity_id
        ).fetchone()
        return None if row is None else Token(*row)

    def use_token(self, identity_id: str, now_ms: int) -> None:
        """Write down that an identity's token was used."""
        self._execute("UPDATE tokens SET used_at_ms = ? WHERE id = ?", now_ms, identity_id)

    # ---------------------------------------------------------------- inside

    def _members(self, condition: str, *values: object) -> list[Member]:
        rows = self._execute(
            f"""
            SELECT i.id, i.role, i.enrolled_at_ms, i.revoked_at_ms, i.password_hash,
              (SELECT max(c.expires_at_ms) FROM certificates c
               WHERE c.id = i.id AND c.revoked_at_ms IS NULL)
            FROM identities i {condition} ORDER BY i.role, i.id
            """,  # noqa: S608  # the condition is one of ours
            *values,
        )
        return [
            Member(
                identity=Identity(role=Role(role), id=name),
                enrolled_at_ms=enrolled_at_ms,
                revoked_at_ms=revoked_at_ms,
                password_hash=password_hash,
                expires_at_ms=expires_at_ms,
            )
            for name, role, enrolled_at_ms, revoked_at_ms, password_hash, expires_at_ms in rows
        ]

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if self._db is None:
            raise RegistryUnavailableError(f"the registry {self._path} is not open")
        with self._mapped():
            return self._db.execute(statement, values)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RegistryUnavailableError(
                f"the registry {self._path} cannot be used: {error}",
                hint="check who may write the folder, and its disk",
            ) from error
