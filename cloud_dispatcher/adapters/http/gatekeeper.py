"""Who may come in, how often, and with how much."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.keys import ApiKey, KeyRing
from cloud_dispatcher.adapters.http.settings import is_loopback
from cloud_dispatcher.local_devices import local_device
from fleet_protocol.messages import DeviceId

BODY_MAX_BYTES: Final = 1_048_576
_BODY_WAIT_S: Final = 30.0
_MINUTE_MS: Final = 60_000


class Caller(msgspec.Struct, frozen=True):
    """Who asks.

    Attributes:
        key: The name of the key; empty where none is needed.
        tenant: Whose jobs they are.
    """

    key: str
    tenant: str

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
        ring: The keys; None: no key is needed, and only this machine is listened to.
    """

    def __init__(self, ring: KeyRing | None, clock: Callable[[], int]) -> None:
        self._ring = ring
        self._clock = clock
        self._meter = RequestMeter()

    def admit(self, request: Request) -> Caller:
        """Return who asks.

        Raises:
            ApiError: 401, 403 or 429.
        """
        if self._ring is None:
            self._check_host(request)
            return self._note(request, _ANYBODY)
        self._ring.refresh()
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(401, "missing_api_key", "send `Authorization: Bearer KEY`")
        key = self._ring.find(secret.strip())
        if key is None:
            raise ApiError(401, "invalid_api_key", "this key is not known here")
        caller = self._note(request, Caller(key=key.name, tenant=key.tenant))
        wait_ms = self._meter.wait_ms(key, self._clock())
        if wait_ms:
            message = f"the key {key.name} may ask {key.per_min} times a minute"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after_ms=wait_ms)
        return caller

    def _note(self, request: Request, caller: Caller) -> Caller:
        request.state.caller = caller
        return caller

    def _check_host(self, request: Request) -> None:
        """A page of the web may be led to this machine's address; its name gives it away."""
        named = [f"//{request.headers.get('host', '')}", *request.headers.getlist("origin")]
        if not all(_is_here(url) for url in named):
            message = "without keys only this machine is answered: http://127.0.0.1:PORT"
            raise ApiError(403, "host_refused", message)


def is_same_site(connection: HTTPConnection) -> bool:
    """Tell whether a page of this very gateway asks, by this machine's own address.

    A browser names the page's origin with every WebSocket, and asks nobody's leave to open one.
    """
    host = connection.headers.get("host", "")
    origins = connection.headers.getlist("origin")
    return bool(host) and _is_here(f"//{host}") and all(o == f"http://{host}" for o in origins)


def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


async def read_json(request: Request) -> bytes:
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
                if len(body) > BODY_MAX_BYTES:
                    message = f"the body has more than {BODY_MAX_BYTES} bytes"
                    raise ApiError(413, "too_large", message)
    except TimeoutError as error:
        message = f"the body did not arrive within {_BODY_WAIT_S:g} s"
        raise ApiError(408, "body_too_slow", message) from error
    except ClientDisconnect as error:
        raise ApiError(400, "gone", "the client went away") from error
    return bytes(body)
