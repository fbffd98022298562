"""The gateway's paths, put together, with one line of log a request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_dispatcher.adapters.http.bridge import MqttBridge
from cloud_dispatcher.adapters.http.chat import ChatDesk
from cloud_dispatcher.adapters.http.errors import (
    ApiError,
    tell_api_error,
    tell_failure,
    tell_http_error,
    tell_store_error,
)
from cloud_dispatcher.adapters.http.exposition import metrics_routes
from cloud_dispatcher.adapters.http.gatekeeper import Gatekeeper
from cloud_dispatcher.adapters.http.health import health_routes
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.adapters.http.jobs import JobDesk
from cloud_dispatcher.adapters.http.keys import KeyRing, read_keys
from cloud_dispatcher.adapters.http.page import Page
from cloud_dispatcher.adapters.http.server import url_of
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.ports import StoreUnavailableError

_log = structlog.get_logger(__name__)

_OFTEN: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their lines are for debugging."""
_HANDLERS: Final[Mapping[Any, Any]] = {
    ApiError: tell_api_error,
    HTTPException: tell_http_error,
    StoreUnavailableError: tell_store_error,
    Exception: tell_failure,
}


def build_gateway(inside: Inside, settings: GatewaySettings) -> ASGIApp:
    """Put the gateway together.

    Raises:
        ConfigError: The file of keys is missing or wrong.
    """
    file = settings.keys_file
    ring = None if file is None else KeyRing(Path(file).expanduser())
    gate = Gatekeeper(ring, inside.clock)
    routes: list[BaseRoute] = [
        *health_routes(inside),
        *metrics_routes(inside.metrics, gate),
        *ChatDesk(inside, gate, settings).routes(),
        *JobDesk(inside, gate, settings).routes(),
    ]
    if ring is None and inside.broker is not None:
        routes += [*Page(inside, gate).routes(), *MqttBridge(inside.broker).routes()]
    return Starlette(
        routes=routes, middleware=[Middleware(RequestLog)], exception_handlers=_HANDLERS
    )


def describe(settings: GatewaySettings) -> str:
    """Say where it would answer, and to whom; raises ConfigError as `build_gateway` does."""
    if settings.port is None:
        return "none: gateway.port is not set"
    if settings.keys_file is None:
        return f"{url_of(settings)} for this machine alone, without keys"
    keys = read_keys(Path(settings.keys_file).expanduser())
    return f"{url_of(settings)} for {len(keys)} keys of {settings.keys_file}"


class RequestLog:
    """Writes `http.answered`: who asked for which path, and how it went. No texts, no keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and note how."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        status = 499  # nobody was answered: the client went away

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            caller = scope.get("state", {}).get("caller")
            tell = _log.debug if scope["path"] in _OFTEN else _log.info
            tell(
                "http.answered",
                method=scope["method"],
                path=scope["path"][:200],
                status=status,
                caller=None if caller is None else caller.key,
                tenant=None if caller is None else caller.tenant,
                took_ms=round((time.monotonic() - started_s) * 1_000),
            )
