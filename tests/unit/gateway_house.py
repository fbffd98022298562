"""A gateway before a dispatcher of shipped fakes, on a real port of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from openai import AsyncOpenAI

from cloud_dispatcher.adapters.http.gateway import build_gateway, open_keys
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.adapters.http.login_file import LoginFile
from cloud_dispatcher.adapters.http.server import serving, url_of
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.adapters.http.webhook_courier import WebhookCourier
from cloud_dispatcher.metrics import FleetCounts
from cloud_dispatcher.scraping import Scrape
from fleet_cli.local_fleet import free_port
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.settings import BrokerSettings
from tests.unit.service_house import House, Worker


@asynccontextmanager
async def gateway(
    house: House,
    *,
    has_cloud: bool = False,
    broker: BrokerSettings | None = None,
    webhooks: WebhookCourier | None = None,
    logins: LoginFile | None = None,
    **settings: object,
) -> AsyncIterator[str]:
    """Run a dispatcher and its gateway; yield where it answers."""
    async with house.dispatcher() as service:
        counts = FleetCounts()
        service._observers = (*service._observers, counts, *([webhooks] if webhooks else []))
        scrape = Scrape(
            counts,
            engine=service._engine,
            service=service,
            provider=house.provider,
            clock=house.clock,
        )
        chosen = msgspec.convert({"port": free_port(), "drain_s": 0, **settings}, GatewaySettings)
        inside = Inside(
            local=service.local,
            store=house.store,
            is_ready=lambda: service.is_ready,
            has_cloud=lambda: has_cloud,
            workers=service._engine.workers,
            roll=service._engine.roll,
            metrics=scrape.families,
            clock=house.clock,
            history=service.history,
            broker=broker,
            webhooks=webhooks,
            keys=open_keys(chosen),
            logins=logins,
            audit=lambda what, about: house.audited.append((what, about)),
        )
        async with serving(build_gateway(inside, chosen), chosen):
            yield url_of(chosen)


@asynccontextmanager
async def openai_client(url: str, *, key: str = "none", **more: Any) -> AsyncIterator[AsyncOpenAI]:
    """The SDK as an application has it, but for its repetitions."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, **more) as client:
        yield client


def says(worker: Worker, got: m.Assignment, index: int, text: str) -> None:
    """Let a worker's answer grow."""
    chunk = m.WorkerTokenChunk(attempt=got.attempt, i=index, t=text)
    worker.say(t.WORKER_TOKENS, chunk, "w1", got.job)
