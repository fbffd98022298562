"""Whether the program lives, and whether it serves: for supervisors and load balancers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cloud_dispatcher.adapters.http.inside import Inside
from fleet_protocol.messages import PresenceStatus


def health_routes(inside: Inside) -> list[Route]:
    """Return `/healthz` and `/readyz`. They need no key and tell no names."""

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> JSONResponse:
        ready = inside.is_ready()
        online = sum(status is PresenceStatus.ONLINE for _, status in inside.roll())
        body = {"status": "ready" if ready else "not_ready", "workers_online": online}
        return JSONResponse(body, 200 if ready else 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
