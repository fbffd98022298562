"""Who may come in, how often, and with how much."""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from cloud_dispatcher.adapters.http.addresses import is_here
from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.keys import ApiKey, KeyRing
from cloud_dispatcher.adapters.http.origin import SAFE_METHODS, HomeOrigin
from cloud_dispatcher.adapters.http.sessions import Session, Sessions
from cloud_dispatcher.core.spending import Payer
from cloud_dispatcher.local_devices import local_device
from fleet_protocol.messages import DeviceId
from fleet_protocol.roles import Action, allowed
from fleet_protocol.topics import Role

BODY_MAX_BYTES: Final = 1_048_576
CSRF_HEADER: Final = "x-csrf-token"
_BODY_WAIT_S: Final = 30.0
_MINUTE_MS: Final = 60_000
_COOKIE: Final = "edgefleet"


class Caller(msgspec.Struct, frozen=True):
    """Who asks.

    Attributes:
        key: The name of the key, or `page-USER` of who is logged in; empty where nobody needs
            either.
        tenant: Whose jobs they are.
        payer: Who pays besides the tenant: the key, if there is one.
    """

    key: str
    tenant: str
    payer: Payer | None = None

    @property
    def device(self) -> DeviceId:
        """In whose name the requests are jobs."""
        return local_device(self.tenant)


_ANYBODY: Final = Caller(key="", tenant="default")


class RequestMeter:
    """Counts the requests of each key within the last minute."""

    def __init__(self) -> None:
        self._at_ms: dict[str, deque[int]] = {}

    def wait_ms(self, key: ApiKey, now_ms: int) -> int:
        """Count a request and return 0, or return how long it must wait to be let in."""
        if key.per_min is None:
            return 0
        recent = self._at_ms.setdefault(key.name, deque())
        while recent and recent[0] <= now_ms - _MINUTE_MS:
            recent.popleft()
        if len(recent) >= key.per_min:
            return recent[0] + _MINUTE_MS - now_ms
        recent.append(now_ms)
        return 0


class Gatekeeper:
    """Lets requests in.

    Args:
        ring: The keys; None: no key lets anybody in.
        sessions: Who is logged in; None: there is no login. Without either only this machine is
            listened to, and everybody on it may do everything.
        home: Where pages must come from.
    """

    def __init__(
        self,
        ring: KeyRing | None,
        clock: Callable[[], int],
        *,
        sessions: Sessions | None = None,
        home: HomeOrigin | None = None,
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._meter = RequestMeter()
        self.sessions = sessions
        self.home = home or HomeOrigin(None)

    @property
    def is_open(self) -> bool:
        """Whether nobody here needs a key or a login."""
        return self._ring is None and self.sessions is None

    @property
    def cookie(self) -> str:
        """Its name. With the prefix browsers take it over TLS alone, and from this host alone."""
        return f"__Host-{_COOKIE}" if self.home.is_secure else _COOKIE

    def admit(self, request: Request, action: Action = Action.ASK) -> Caller:
        """Return who asks; keys are for applications, which ask and read figures.

        Raises:
            ApiError: 401, 403 or 429.
        """
        return self._admit(request, action, may_change=request.method not in SAFE_METHODS)

    def admit_socket(self, socket: HTTPConnection, action: Action = Action.ASK) -> Caller:
        """Do the same for a WebSocket, which a page of elsewhere may open without asking."""
        caller = self._admit(socket, action, may_change=False)
        is_page = "origin" in socket.headers or not self.is_open
        if "authorization" not in socket.headers and is_page and not self.home.is_home(socket):
            raise _not_our_page()
        return caller

    def _admit(self, request: HTTPConnection, action: Action, *, may_change: bool) -> Caller:
        if self.is_open:
            self.check_host(request)
            return _noted(request, _ANYBODY)
        if "authorization" not in request.headers and self.cookie in request.cookies:
            return self._admit_page(request, action, may_change=may_change)
        return self._admit_key(request)

    def session(self, connection: HTTPConnection) -> Session | None:
        """Return the session of a page; None: nobody is logged in there."""
        secret = connection.cookies.get(self.cookie)
        return None if secret is None or self.sessions is None else self.sessions.find(secret)

    def role(self, connection: HTTPConnection) -> Role | None:
        """Return what whoever has the page open may do; None: they must log in."""
        if self.is_open:
            return Role.ADMIN
        session = self.session(connection)
        return None if session is None else session.role

    def check_host(self, request: HTTPConnection) -> None:
        """Raise ApiError 403 for a page of the web that was led to this machine's address.

        Its name gives it away.
        """
        named = [f"//{request.headers.get('host', '')}", *request.headers.getlist("origin")]
        if not all(is_here(url) for url in named):
            message = "without keys only this machine is answered: http://127.0.0.1:PORT"
            raise ApiError(403, "host_refused", message)

    def check_page(self, request: HTTPConnection, session: Session) -> None:
        """Raise ApiError 403 where no page of ours can have sent what may change something.

        A browser sends the cookie with whatever a page of elsewhere has it do.
        """
        told = request.headers.get(CSRF_HEADER, "").encode()
        if not self.home.is_home(request) or not hmac.compare_digest(told, session.csrf.encode()):
            raise _not_our_page()

    def _admit_key(self, request: HTTPConnection) -> Caller:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(401, "missing_api_key", "send `Authorization: Bearer KEY`")
        key = None if self._ring is None else self._ring.find(secret.strip())
        if key is None:
            raise ApiError(401, "invalid_api_key", "this key is not known here")
        caller = _noted(request, Caller(key=key.name, tenant=key.tenant, payer=key.payer))
        wait_ms = self._meter.wait_ms(key, self._clock())
        if wait_ms:
            message = f"the key {key.name} may ask {key.per_min} times a minute"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after_ms=wait_ms)
        return caller

    def _admit_page(self, request: HTTPConnection, action: Action, *, may_change: bool) -> Caller:
        session = self.session(request)
        if session is None:
            raise ApiError(401, "login_over", "log in again")
        user = session.user
        caller = _noted(request, Caller(key=page_id(user.name), tenant=user.tenant))
        if may_change:
            self.check_page(request, session)
        if not allowed(session.role, action):
            message = f"{action.value} is not for the role {session.role.value}"
            raise ApiError(403, "not_authorized", message, final=True)
        return caller


def _noted(request: HTTPConnection, caller: Caller) -> Caller:
    request.state.caller = caller  # for the log
    return caller


def _not_our_page() -> ApiError:
    return ApiError(403, "not_our_page", "this was not sent by a page of this fleet")


def page_id(user: str) -> str:
    """Return under which id a user's pages ask the dispatcher."""
    return f"page-{user}"


async def read_json(request: Request, *, most_bytes: int = BODY_MAX_BYTES) -> bytes:
    """Return the body.

    Raises:
        ApiError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps out what a page of the web may send without asking: forms and plain text.
        raise ApiError(415, "not_json", "send `Content-Type: application/json`")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise ApiError(413, "too_large", f"the body has more than {most_bytes} bytes")
    except TimeoutError as error:
        message = f"the body did not arrive within {_BODY_WAIT_S:g} s"
        raise ApiError(408, "body_too_slow", message) from error
    except ClientDisconnect as error:
        raise ApiError(400, "gone", "the client went away") from error
    return bytes(body)
