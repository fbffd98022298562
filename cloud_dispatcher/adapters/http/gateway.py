"""The gateway's paths, put together, with one line of log a request."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http import HTTPStatus
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
from cloud_dispatcher.adapters.http.documents import document_routes
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
from cloud_dispatcher.adapters.http.login import LoginDesk
from cloud_dispatcher.adapters.http.origin import SAFE_METHODS, HomeOrigin
from cloud_dispatcher.adapters.http.page import Page
from cloud_dispatcher.adapters.http.page_identities import PageIdentities
from cloud_dispatcher.adapters.http.server import url_of
from cloud_dispatcher.adapters.http.sessions import Sessions
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.adapters.http.users import read_users, watch_users
from cloud_dispatcher.ports import StoreUnavailableError

_log = structlog.get_logger(__name__)

_OFTEN: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their lines are for debugging."""
_LOOKED_AT: Final = re.compile(r"/jobs(/[^/]*)?")
"""Asked again and again by who waits for an answer; a look that was refused is told, though."""
_SECRET: Final = re.compile(r"(ef-|whsec_)[A-Za-z0-9+/=]{8,}")
"""A key that somebody put into the path: paths are logged."""
_HANDLERS: Final[Mapping[Any, Any]] = {
    ApiError: tell_api_error,
    HTTPException: tell_http_error,
    StoreUnavailableError: tell_store_error,
    Exception: tell_failure,
}


def open_keys(settings: GatewaySettings) -> KeyRing | None:
    """Return the keys that the settings name; raises ConfigError where their file is wrong."""
    return None if settings.keys_file is None else KeyRing(_path(settings.keys_file))


def build_gateway(inside: Inside, settings: GatewaySettings) -> ASGIApp:
    """Put the gateway together.

    Raises:
        ConfigError: The file of users is missing or wrong.
    """
    gate = _gatekeeper(inside, settings)
    routes: list[BaseRoute] = [
        *health_routes(inside),
        *metrics_routes(inside, gate, by_worker=settings.worker_metrics),
        *ChatDesk(inside, gate, settings).routes(),
        *JobDesk(inside, gate, settings).routes(),
        *document_routes(inside.root),
        *_page_routes(inside, gate, settings),
    ]
    return Starlette(
        routes=routes, middleware=[Middleware(RequestLog)], exception_handlers=_HANDLERS
    )


def _gatekeeper(inside: Inside, settings: GatewaySettings) -> Gatekeeper:
    page = settings.page
    sessions = None
    if page.users_file is not None:
        users = watch_users(_path(page.users_file))
        sessions = Sessions(
            users, inside.clock, idle_h=page.idle_h, most_h=page.login_h, file=inside.logins
        )
    return Gatekeeper(inside.keys, inside.clock, sessions=sessions, home=HomeOrigin(page.url))


def _page_routes(inside: Inside, gate: Gatekeeper, settings: GatewaySettings) -> list[BaseRoute]:
    """The page is there for who logs in; where nobody must, before a broker that asks nobody."""
    broker, sessions = inside.broker, gate.sessions
    if broker is None or not (sessions or (gate.is_open and broker.is_anonymous)):
        return []
    identities = PageIdentities(broker, settings.page, inside.root)
    routes = [
        *Page(inside, gate, identities).routes(),
        *MqttBridge(gate, identities).routes(),
    ]
    if sessions is None:
        return routes
    identities.check(sessions.users.value.values())
    return [*routes, *LoginDesk(inside, gate, sessions, login_h=settings.page.login_h).routes()]


def describe(settings: GatewaySettings) -> str:
    """Say where it would answer, and to whom; raises ConfigError as `build_gateway` does."""
    if settings.port is None:
        return "none: gateway.port is not set"
    found = []
    if settings.keys_file is not None:
        keys = read_keys(_path(settings.keys_file))
        found.append(f"{len(keys)} keys of {settings.keys_file}")
    if settings.page.users_file is not None:
        users = read_users(_path(settings.page.users_file))
        found.append(f"{len(users)} users of {settings.page.users_file}")
    whom = " and ".join(found) or "this machine alone, without keys"
    return f"{url_of(settings)} for {whom}"


def _path(file: str) -> Path:
    return Path(file).expanduser()


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
            tell = _log.debug if _is_a_look(scope, status) else _log.info
            tell(
                "http.answered",
                method=scope["method"],
                path=_SECRET.sub(r"\1***", scope["path"])[:200],
                status=status,
                caller=None if caller is None else caller.key,
                tenant=None if caller is None else caller.tenant,
                took_ms=round((time.monotonic() - started_s) * 1_000),
            )


def _is_a_look(scope: Scope, status: int) -> bool:
    """Say whether a request changed nothing, went well and comes again in a moment."""
    if scope["path"] in _OFTEN:
        return True
    is_well = status < HTTPStatus.BAD_REQUEST and scope["method"] in SAFE_METHODS
    return is_well and _LOOKED_AT.fullmatch(scope["path"]) is not None
