"""The authority of a fleet: a folder with a root to put away and an issuing key to work with.

Only `found` needs the root's key. It may be taken off the machine at once; everything else is done
by the issuing authority that it signed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, Self

import msgspec

from fleet_pki import certificates as c
from fleet_pki.files import (
    PUBLIC_MODE,
    make_folder,
    read_file,
    write_file,
)
from fleet_pki.passwords import hash_password
from fleet_pki.registry import Issued, Member, Registry, Secret, Token
from fleet_protocol.access import Identity, check_identities
from fleet_protocol.errors import ConfigError, RejectedError
from fleet_protocol.roles import LADDER
from fleet_protocol.topics import Role

ROOT_LIFE: Final = timedelta(days=20 * 365)
ISSUING_LIFE: Final = timedelta(days=10 * 365)
SERVER_LIFE: Final = timedelta(days=365)
LIFE: Final = {
    Role.WORKER: timedelta(hours=72),
    Role.DEVICE: timedelta(days=365),
    Role.VIEWER: timedelta(days=90),
    Role.OPERATOR: timedelta(days=90),
    Role.ADMIN: timedelta(days=90),
    Role.DISPATCHER: timedelta(days=365),
    Role.AUTHORITY: timedelta(days=365),
}
"""How long certificates hold. Workers renew theirs; the others are enrolled again."""
TOKEN_LIFE: Final = timedelta(hours=24)
_FIT: Final = {
    Secret.PASSWORD: {Role.DEVICE},
    Secret.TOKEN: {Role.WORKER},
    Secret.CERTIFICATE: set(Role),
}
_TOKEN_MARK: Final = "fleet1"  # noqa: S105  # begins every token
_KEPT_MS: Final = 86_400_000
_HINT: Final = "make one with `fleet pki init`, or name its folder with --pki DIR"


class PkiFolder:
    """The paths of an authority."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.root_key = self.path / "root" / "root.key"
        self.root = self.path / "root" / "root.pem"
        self.issuing_key = self.path / "issuing" / "issuing.key"
        self.issuing = self.path / "issuing" / "issuing.pem"
        self.ca = self.path / "ca.pem"
        self.registry = self.path / "registry.sqlite"

    def __str__(self) -> str:
        return str(self.path)


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """The wish to enrol an identity.

    Attributes:
        secret: By what it will be known.
        life: Of its certificate or token; None: what is usual for it.
    """

    identity: Identity
    secret: Secret = Secret.CERTIFICATE
    life: timedelta | None = None


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What an identity is given: contents by the name of the file.

    All but `ca.pem` and `role` is secret; the latter is there for those who look after the fleet.
    """

    identity: Identity
    files: dict[str, bytes]

    def __repr__(self) -> str:
        return f"Bundle({self.identity!r}, {', '.join(self.files)})"


Keep = Callable[[Sequence[Bundle]], None]


def found(folder: PkiFolder, name: str, *, now_ms: int, passphrase: bytes | None = None) -> None:
    """Make the authority of a new fleet.

    Args:
        folder: Where.
        name: What it is called in its certificates.
        now_ms: UTC epoch milliseconds.
        passphrase: Encrypts the root's key.

    Raises:
        ConfigError: `pki_exists`: there is one; or the folder cannot be written.
    """
    if folder.ca.exists() or folder.issuing_key.exists() or folder.root_key.exists():
        raise ConfigError(
            f"{folder} already is an authority",
            code="pki_exists",
            hint="name another folder with --pki DIR: whoever has the old root trusts no new one",
        )
    for path in (folder.path, folder.root.parent, folder.issuing.parent):
        make_folder(path)
    root_key, issuing_key = c.new_key(), c.new_key()
    root = c.make_root(name, root_key, c.Span.of(now_ms, ROOT_LIFE))
    issuing = c.make_issuing(
        c.Issuer(root, root_key), name, issuing_key.public_key(), c.Span.of(now_ms, ISSUING_LIFE)
    )
    write_file(folder.root_key, c.key_pem(root_key, passphrase=passphrase))
    write_file(folder.root, c.pem_of(root), mode=PUBLIC_MODE)
    write_file(folder.issuing_key, c.key_pem(issuing_key))
    write_file(folder.issuing, c.pem_of(issuing), mode=PUBLIC_MODE)
    # Last: a folder with it is whole.
    write_file(folder.ca, c.pem_of(root), mode=PUBLIC_MODE)


class Authority:
    """Enrols, renews and revokes. Lifetime is `with`.

    Every method takes the instant as UTC epoch milliseconds, by this machine's clock.
    """

    def __init__(self, folder: PkiFolder) -> None:
        """Raise ConfigError if the folder is no authority, RejectedError if a file is damaged."""
        self.folder = folder
        self.ca_pem = read_file(folder.ca, hint=_HINT)
        issuing = c.read_certificate(read_file(folder.issuing, hint=_HINT))
        self._issuer = c.Issuer(issuing, c.read_key(read_file(folder.issuing_key, hint=_HINT)))
        self._chain = c.pem_of(issuing)
        self._registry = Registry(folder.registry)

    def __enter__(self) -> Self:
        self._registry.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._registry.__exit__(*exc)

    @property
    def trust_pem(self) -> bytes:
        """What a server trusts: the issuing authority too, for clients that do not show it."""
        return self.ca_pem + self._chain

    def members(self) -> list[Member]:
        """Return everybody who was ever enrolled, by role and id."""
        return self._registry.members()

    def enrol(
        self, enrolments: Sequence[Enrolment], keep: Keep, *, now_ms: int, again: bool = False
    ) -> list[Bundle]:
        """Enrol identities, all of them or none.

        Args:
            enrolments: Who.
            keep: Puts the bundles where they belong; only if that succeeds are they enrolled.
            now_ms: The instant.
            again: Whoever is enrolled loses what it has and gets it anew.

        Raises:
            RejectedError: `already_enrolled`, `secret_unfit`.
            ConfigError: `duplicate_id`, `invalid_id`.
            RegistryUnavailableError: Nothing was enrolled.
        """
        check_identities(one.identity for one in enrolments)
        with self._registry.transaction():
            bundles = [self._enrol(one, now_ms=now_ms, again=again) for one in enrolments]
            keep(bundles)
        return bundles

    def redeem(self, token: str, request: bytes, *, now_ms: int) -> bytes:
        """Return the certificates that a one-time token is good for, as PEM, the leaf first.

        The same request again gets the same certificates, for their bearer may not have got them.

        Raises:
            RejectedError: `token_refused` (unknown, used by another key, expired), `bad_request`.
        """
        with self._registry.transaction():
            return self._redeem(self._registry.token(_digest(token)), request, now_ms=now_ms)

    def join(self, worker: str, request: bytes, *, now_ms: int) -> bytes:
        """Do the same for a worker that showed its token to the broker, as its password there.

        Raises:
            RejectedError: As `redeem` does.
        """
        with self._registry.transaction():
            return self._redeem(self._registry.token_of(worker), request, now_ms=now_ms)

    def renew(self, identity_id: str, request: bytes, *, now_ms: int) -> bytes:
        """Return new certificates for a worker that the broker knows, as PEM, the leaf first.

        A request with a key that has a certificate with more than half its life left gets that
        one: its answer was lost. Not one from the future, made while our clock was ahead.

        Raises:
            RejectedError: `revoked`, `unknown_identity`, `bad_request`.
        """
        with self._registry.transaction():
            member = self._active(identity_id)
            if member.identity.role is not Role.WORKER:
                raise RejectedError(
                    f"{identity_id} is no worker: only workers renew",
                    code="not_authorized",
                    hint=f"fleet enroll {member.identity.role} {identity_id} --again",
                )
            public = c.read_request(request, identity_id)
            issued = self._registry.certificate_of(identity_id, c.key_digest(public))
            if issued is not None and issued.issued_at_ms <= now_ms:
                life_ms = issued.expires_at_ms - issued.issued_at_ms
                if issued.expires_at_ms - now_ms > life_ms / 2:
                    return issued.chain
            self._registry.forget_expired(before_ms=now_ms - _KEPT_MS)
            return self._issue(member.identity, public, now_ms=now_ms)

    def revoke(self, identity_id: str, *, now_ms: int) -> None:
        """Take everything from an identity; a second time changes nothing.

        Raises:
            RejectedError: `unknown_identity`.
        """
        with self._registry.transaction():
            member = self._registry.member(identity_id)
            if member is None:
                raise _unknown(identity_id)
            if member.is_active:
                self._registry.withdraw(identity_id, now_ms)
                gone = msgspec.structs.replace(member, revoked_at_ms=now_ms, password_hash=None)
                self._registry.put_member(gone)

    def revocations(self, *, now_ms: int) -> bytes:
        """Return the list of revoked certificates as PEM, later than the one before."""
        with self._registry.transaction():
            revoked = self._registry.revoked(since_ms=now_ms - _KEPT_MS)
            at_ms = self._registry.date_revocations(now_ms)
        return c.make_revocations(self._issuer, revoked, updated_at_ms=at_ms)

    def issue_server(self, hosts: Sequence[str], *, now_ms: int) -> dict[str, bytes]:
        """Return key and certificates of a broker that is reached by these names."""
        key = c.new_key()
        certificate = c.issue_server(
            self._issuer, hosts, key.public_key(), self._span(now_ms, SERVER_LIFE)
        )
        return {"key.pem": c.key_pem(key), "cert.pem": c.pem_of(certificate) + self._chain}

    # ---------------------------------------------------------------- inside

    def _enrol(self, wish: Enrolment, *, now_ms: int, again: bool) -> Bundle:
        identity, registry = wish.identity, self._registry
        if identity.role not in _FIT[wish.secret]:
            raise RejectedError(
                f"a {identity.role} cannot be enrolled with a {wish.secret}",
                code="secret_unfit",
                hint="passwords are for devices, tokens for workers, certificates for everybody",
            )
        known = registry.member(identity.id)
        if known is not None and known.is_active and not again:
            raise RejectedError(
                f"{identity.id} is enrolled already, as {known.identity.role}",
                code="already_enrolled",
                hint="give it a new secret with --again: the old one then ends at once",
            )
        if known is not None:
            registry.withdraw(identity.id, now_ms)
        member = Member(identity=identity, enrolled_at_ms=now_ms)
        files = {"ca.pem": self.ca_pem}
        if identity.role in LADDER:
            files["role"] = f"{identity.role}\n".encode()
        if wish.secret is Secret.PASSWORD:
            password = secrets.token_urlsafe(32)
            member = msgspec.structs.replace(member, password_hash=hash_password(password))
            files["password"] = f"{password}\n".encode()
        if wish.secret is Secret.TOKEN:
            token = _mint_token(identity)
            member = msgspec.structs.replace(member, password_hash=hash_password(token))
            files["token"] = f"{token}\n".encode()
        registry.put_member(member)
        if wish.secret is Secret.TOKEN:
            life_ms = int((wish.life or TOKEN_LIFE).total_seconds() * 1_000)
            registry.add_token(_digest(token), Token(identity.id, now_ms + life_ms, None))
        if wish.secret is Secret.CERTIFICATE:
            key = c.new_key()
            chain = self._issue(identity, key.public_key(), now_ms=now_ms, life=wish.life)
            files |= {"key.pem": c.key_pem(key), "cert.pem": chain}
        return Bundle(identity=identity, files=files)

    def _redeem(self, token: Token | None, request: bytes, *, now_ms: int) -> bytes:
        if token is None:
            raise _token_refused("nobody was given it, or it was made void")
        member = self._active(token.id)
        public = c.read_request(request, token.id)
        if token.used_at_ms is not None:
            issued = self._registry.certificate_of(token.id, c.key_digest(public))
            if issued is None:
                raise _token_refused("it was used already")
            return issued.chain
        if now_ms > token.expires_at_ms:
            raise _token_refused("it is too old")
        self._registry.use_token(token.id, now_ms)
        self._registry.put_member(msgspec.structs.replace(member, password_hash=None))
        return self._issue(member.identity, public, now_ms=now_ms)

    def _issue(
        self,
        identity: Identity,
        public: c.PublicKey,
        *,
        now_ms: int,
        life: timedelta | None = None,
    ) -> bytes:
        span = self._span(now_ms, life or LIFE[identity.role])
        certificate = c.issue_identity(self._issuer, identity, public, span)
        chain = c.pem_of(certificate) + self._chain
        self._registry.add_certificate(
            Issued(
                serial=certificate.serial_number,
                id=identity.id,
                key_digest=c.key_digest(public),
                chain=chain,
                issued_at_ms=now_ms,
                expires_at_ms=int(span.end.timestamp() * 1_000),
            )
        )
        return chain

    def _span(self, now_ms: int, life: timedelta) -> c.Span:
        """Nothing outlives the authority that signed it."""
        span = c.Span.of(now_ms, life)
        end = min(span.end, self._issuer.certificate.not_valid_after_utc)
        return c.Span(span.begin, end)

    def _active(self, identity_id: str) -> Member:
        member = self._registry.member(identity_id)
        if member is None:
            raise _unknown(identity_id)
        if not member.is_active:
            raise RejectedError(
                f"{identity_id} was revoked",
                code="revoked",
                hint="enrol it again if it may come back",
            )
        return member


def _mint_token(identity: Identity) -> str:
    return f"{_TOKEN_MARK}.{identity.id}.{secrets.token_urlsafe(32)}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _unknown(identity_id: str) -> RejectedError:
    return RejectedError(
        f"{identity_id} is not enrolled", code="unknown_identity", hint="see `fleet pki ls`"
    )


def _token_refused(why: str) -> RejectedError:
    return RejectedError(
        f"the token is refused: {why}",
        code="token_refused",
        hint="have a new one made: fleet enroll worker ID --token --again",
    )
