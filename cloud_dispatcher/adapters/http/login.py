"""`/page/login` and `/page/logout`: a password for a cookie, and its end."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.gatekeeper import Caller, Gatekeeper, page_id, read_json
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.adapters.http.login_limits import LoginLimits
from cloud_dispatcher.adapters.http.sessions import Sessions
from cloud_dispatcher.adapters.http.users import (
    NOBODY,
    PASSWORD_MOST_CHARS,
    User,
    is_password_of,
)
from fleet_protocol.codec import UNREADABLE

_log = structlog.get_logger(__name__)

_BODY_MOST_BYTES: Final = 4_096
_WAITING_MOST: Final = 8
"""Attempts at once: each takes a tenth of a second of the one thread, and 64 MiB."""
_BUSY_MS: Final = 1_000


class _Login(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(max_length=64)]
    password: Annotated[str, msgspec.Meta(max_length=PASSWORD_MOST_CHARS)]


class LoginDesk:
    """Logs people in and out."""

    def __init__(
        self, inside: Inside, gate: Gatekeeper, sessions: Sessions, *, login_h: int
    ) -> None:
        self._clock = inside.clock
        self._audit = inside.audit
        self._gate = gate
        self._sessions = sessions
        self._most_s = login_h * 3_600
        self._limits = LoginLimits()
        self._waiting = 0
        # Its own thread: nobody's guesses keep the store's from working.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passwords")

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route("/page/login", self._login, methods=["POST"]),
            Route("/page/logout", self._logout, methods=["POST"]),
        ]

    async def _login(self, request: Request) -> Response:
        if not self._gate.home.is_home(request):
            raise ApiError(403, "not_our_page", "this was not sent by a page of this fleet")
        body = await read_json(request, most_bytes=_BODY_MOST_BYTES)
        try:
            asked = msgspec.json.decode(body, type=_Login)
        except UNREADABLE as error:
            raise ApiError(400, "invalid_json", "send a `name` and a `password`") from error
        address = request.client.host if request.client else ""
        user = await self._user_of(asked, address)
        # The one before ends, and the new one has a name that nobody knew before.
        self._sessions.end(request.cookies.get(self._gate.cookie, ""))
        secret, _ = self._sessions.begin(user)
        await self._sessions.saved()
        request.state.caller = Caller(key=page_id(user.name), tenant=user.tenant)
        about = {"user": user.name, "role": user.role.value, "address": address}
        _log.info("login.done", **about)
        self._audit("login", about)
        answer = Response(status_code=204, headers={"cache-control": "no-store"})
        answer.set_cookie(
            self._gate.cookie,
            secret,
            max_age=self._most_s,
            secure=self._gate.home.is_secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    async def _user_of(self, asked: _Login, address: str) -> User:
        """Return who has that password; who is not known takes as long as who is.

        Raises:
            ApiError: 401, 429 or 503.
        """
        if self._waiting >= _WAITING_MOST:
            message = "too many people log in at once"
            raise ApiError(503, "busy", message, retry_after_ms=_BUSY_MS)
        wait_ms = self._limits.begin(asked.name, address, self._clock())
        if wait_ms:
            _log.warning("login.held_off", address=address, wait_ms=wait_ms)
            message = "too many wrong passwords: wait"
            raise ApiError(429, "too_many_attempts", message, retry_after_ms=wait_ms)
        self._sessions.users.refresh()
        user = self._sessions.users.value.get(asked.name)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            fits = await loop.run_in_executor(
                self._thread, is_password_of, user or NOBODY, asked.password
            )
        finally:
            self._waiting -= 1
        if user is None or not fits:
            # A name that is not known is not logged: people put passwords there.
            known = {} if user is None else {"user": user.name}
            _log.warning("login.failed", **known, address=address)
            self._audit("login.failed", {**known, "address": address})
            raise ApiError(401, "wrong_password", "no such name, or not its password")
        self._limits.succeeded(asked.name, address)
        return user

    async def _logout(self, request: Request) -> Response:
        session = self._gate.session(request)
        if session is not None:
            self._gate.check_page(request, session)
            self._sessions.end(request.cookies.get(self._gate.cookie, ""))
            await self._sessions.saved()
            _log.info("login.ended", user=session.user.name)
            self._audit("logout", {"user": session.user.name})
        answer = Response(status_code=204, headers={"cache-control": "no-store"})
        answer.delete_cookie(
            self._gate.cookie,
            secure=self._gate.home.is_secure,
            httponly=True,
            samesite="strict",
        )
        return answer
