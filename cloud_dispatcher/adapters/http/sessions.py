"""Who is logged in: sessions in memory, found by the secret of a cookie."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from cloud_dispatcher.adapters.http.users import User
from cloud_dispatcher.adapters.http.watched_file import WatchedFile
from fleet_protocol.topics import Role

_PER_USER: Final = 20
_SECRET_BYTES: Final = 32
_HOUR_MS: Final = 3_600_000


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
    """Begins, finds and ends sessions. A restart of the dispatcher ends all of them.

    Args:
        users: By name; read again when their file changes.
        clock: UTC epoch milliseconds.
        idle_h: A session that nobody uses ends after so many hours; an open page uses it.
        most_h: Every session ends so many hours after its login.
    """

    def __init__(
        self,
        users: WatchedFile[dict[str, User]],
        clock: Callable[[], int],
        *,
        idle_h: int,
        most_h: int,
    ) -> None:
        self.users = users
        self._clock = clock
        self._idle_ms = idle_h * _HOUR_MS
        self._most_ms = most_h * _HOUR_MS
        # By the secret's hash: what somebody may find in a memory dump is no key.
        self._sessions: dict[str, Session] = {}
        self._used_at_ms: dict[str, int] = {}

    def begin(self, user: User) -> tuple[str, Session]:
        """Return a new secret for the cookie, never one that was there before, and the session."""
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        now_ms = self._clock()
        csrf = secrets.token_urlsafe(_SECRET_BYTES)
        session = Session(user=user, csrf=csrf, since_at_ms=now_ms)
        mine = [name for name, each in self._sessions.items() if each.user.name == user.name]
        for oldest in mine[: max(0, len(mine) + 1 - _PER_USER)]:
            self._drop(oldest)
        name = _name_of(secret)
        self._sessions[name] = session
        self._used_at_ms[name] = now_ms
        return secret, session

    def find(self, secret: str) -> Session | None:
        """Return the session and count it as used; None: there is none, or it is over."""
        name = _name_of(secret)
        session = self._sessions.get(name)
        if session is None:
            return None
        self.users.refresh()
        now_ms = self._clock()
        is_over = (
            self.users.value.get(session.user.name) != session.user
            or now_ms >= session.since_at_ms + self._most_ms
            or now_ms >= self._used_at_ms[name] + self._idle_ms
        )
        if is_over:
            self._drop(name)
            return None
        self._used_at_ms[name] = now_ms
        return session

    def end(self, secret: str) -> None:
        """End the session, if there is one."""
        self._drop(_name_of(secret))

    def _drop(self, name: str) -> None:
        self._sessions.pop(name, None)
        self._used_at_ms.pop(name, None)


def _name_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
