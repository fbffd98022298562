"""Who is logged in: sessions found by the secret of a cookie."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from cloud_dispatcher.adapters.http.login_file import Login, LoginFile
from cloud_dispatcher.adapters.http.users import User
from cloud_dispatcher.adapters.http.watched_file import WatchedFile
from fleet_protocol.topics import Role

_PER_USER: Final = 20
_SECRET_BYTES: Final = 32
_HOUR_MS: Final = 3_600_000
_USE_MS: Final = 10 * 60_000
"""How exactly the file knows when a login was used last."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """From a login to its end.

    Attributes:
        user: As they were at the login: whoever is changed in the file must log in again.
        csrf: What a request that changes something must repeat in a header: a page of elsewhere
            can have a browser send the cookie, but cannot read this.
    """

    user: User
    csrf: str
    since_at_ms: int

    @property
    def role(self) -> Role:
        """What they may do."""
        return self.user.role


class Sessions:
    """Begins, finds and ends sessions.

    Args:
        users: By name; read again when their file changes.
        clock: UTC epoch milliseconds.
        idle_h: A session that nobody uses ends after so many hours; an open page uses it.
        most_h: Every session ends so many hours after its login.
        file: Where they outlive the dispatcher; None: they end with it.
    """

    def __init__(
        self,
        users: WatchedFile[dict[str, User]],
        clock: Callable[[], int],
        *,
        idle_h: int,
        most_h: int,
        file: LoginFile | None = None,
    ) -> None:
        self.users = users
        self._clock = clock
        self._idle_ms = idle_h * _HOUR_MS
        self._most_ms = most_h * _HOUR_MS
        self._file = file
        # By the secret's hash: what somebody may find in a memory dump is no key.
        self._logins = {login.name: login for login in (() if file is None else file.found)}
        for login in [login for login in self._logins.values() if self._is_old(login)]:
            self._drop(login.name)

    def begin(self, user: User) -> tuple[str, Session]:
        """Return a new secret for the cookie, never one that was there before, and the session."""
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        now_ms = self._clock()
        mine = [name for name, login in self._logins.items() if login.user == user.name]
        for oldest in mine[: max(0, len(mine) + 1 - _PER_USER)]:
            self._drop(oldest)
        login = Login(
            name=_name_of(secret),
            user=user.name,
            proof=_proof_of(user, secret),
            since_at_ms=now_ms,
            used_at_ms=now_ms,
        )
        self._put(login)
        return secret, _session(user, secret, login)

    def find(self, secret: str) -> Session | None:
        """Return the session and count it as used; None: there is none, or it is over."""
        login = self._logins.get(_name_of(secret))
        if login is None:
            return None
        self.users.refresh()
        user = self.users.value.get(login.user)
        is_theirs = user is not None and hmac.compare_digest(login.proof, _proof_of(user, secret))
        if user is None or not is_theirs or self._is_old(login):
            self._drop(login.name)
            self._save_soon()
            return None
        used = replace(login, used_at_ms=self._clock())
        self._logins[login.name] = used
        if used.used_at_ms // _USE_MS != login.used_at_ms // _USE_MS:
            self._put(used)
            self._save_soon()
        return _session(user, secret, used)

    def end(self, secret: str) -> None:
        """End the session, if there is one."""
        self._drop(_name_of(secret))

    async def saved(self) -> None:
        """Wait until what began and ended is on the disk: to be done before anybody is told."""
        if self._file is not None:
            await self._file.save()

    def _is_old(self, login: Login) -> bool:
        now_ms = self._clock()
        return (
            now_ms >= login.since_at_ms + self._most_ms
            or now_ms >= login.used_at_ms + self._idle_ms
        )

    def _put(self, login: Login) -> None:
        self._logins[login.name] = login
        if self._file is not None:
            self._file.put(login)

    def _drop(self, name: str) -> None:
        if self._logins.pop(name, None) is not None and self._file is not None:
            self._file.drop(name)

    def _save_soon(self) -> None:
        if self._file is not None:
            self._file.save_soon()


def _session(user: User, secret: str, login: Login) -> Session:
    return Session(user=user, csrf=_digest(secret.encode(), b"csrf"), since_at_ms=login.since_at_ms)


def _name_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _proof_of(user: User, secret: str) -> str:
    """Return what only this user's login has, as long as the file says the same of them."""
    return _digest(msgspec.json.encode(user), secret.encode())


def _digest(key: bytes, text: bytes) -> str:
    return hmac.new(key, text, "sha256").hexdigest()
