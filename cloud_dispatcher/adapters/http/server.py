"""The gateway's own life: listen, serve in the dispatcher's loop, end in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from starlette.types import ASGIApp

from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.adapters.http.slow_clients import (
    PatientHttp,
    PatientWebSocket,
    most_connections,
)
from fleet_protocol.errors import ConfigError

_log = structlog.get_logger(__name__)

_BACKLOG = 512
_KEEP_ALIVE_S = 30
_WS_MAX_BYTES = 1_048_576
_HEAD_MAX_BYTES = 32_768
_PAGES_MOST = 512
"""Connections beside those of requests that wait: pages, and what Prometheus asks."""


class _Server(uvicorn.Server):
    """Signals are the dispatcher's: it stops the gateway first, then itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


@asynccontextmanager
async def serving(app: ASGIApp, settings: GatewaySettings) -> AsyncIterator[None]:
    """Serve from entering to leaving; then nothing new is taken, and what is under way may end.

    Raises:
        ConfigError: It cannot listen there.
    """
    listener = _listen(settings.host, settings.port or 0)
    most = most_connections(settings.max_open + _PAGES_MOST)
    config = uvicorn.Config(
        app,
        http=type("GatewayHttp", (PatientHttp,), {"most": most}),
        ws=PatientWebSocket,
        ws_max_size=_WS_MAX_BYTES,
        # With 10,000 workers a shard of their table has 68 kB: 14 on the wire, for 1 ms of ours.
        ws_per_message_deflate=True,
        h11_max_incomplete_event_size=_HEAD_MAX_BYTES,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.page.proxies),
        forwarded_allow_ips=list(settings.page.proxies),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]), name="http-gateway")
    _log.info("gateway.up", url=url_of(settings), keys=settings.keys_file is not None)
    try:
        yield
    finally:
        server.should_exit = True
        await task
        # Those that were cancelled still call their jobs off.
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
        _log.info("gateway.down")


def url_of(settings: GatewaySettings) -> str:
    """Return where it answers."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"the gateway cannot listen on {host} port {port}: {error.strerror or error}",
            hint="set another gateway.port, or end the program that has it",
        ) from error
