"""The composition root: the only place that knows every part by name."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cloud_dispatcher.adapters.providers import build_provider
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.config import DispatcherSettings, broker_password
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.observers import JobLog
from cloud_dispatcher.service import DispatcherService, Outside, session_of
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.topics import Topics


def steady_clock() -> Callable[[], int]:
    """Return a clock that starts at the wall clock and then only moves forward.

    Leases and deadlines hang on it: a step of the wall clock must not end them.
    """
    offset_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (time.monotonic_ns() + offset_ns) // 1_000_000


async def run(settings: DispatcherSettings, environ: Mapping[str, str]) -> None:
    """Run the dispatcher until SIGTERM or SIGINT.

    Raises:
        FleetError: It cannot start, or cannot go on; see `DispatcherService.run`.
    """
    clock = steady_clock()
    epoch = KeyMint(secrets.randbits).mint(clock())
    topics = Topics(settings.broker.root)
    session = session_of(
        topics, epoch, client_id=settings.client_id, expiry_s=settings.session_expiry_s
    )
    bus = MqttBus(settings.broker, session, password=broker_password(settings.broker))
    provider = build_provider(settings.provider, environ)
    store = SqliteJobStore(Path(settings.store.path), synchronous=settings.store.synchronous)
    try:
        async with store:
            outside = Outside(
                bus=bus,
                store=store,
                provider=provider,
                clock=clock,
                topics=topics,
                epoch=epoch,
                observers=(JobLog(),),
            )
            service = DispatcherService(Engine(settings.engine, epoch), outside, settings.service)
            with _stopped_by_signals(service.stop):
                await service.run()
    finally:
        await provider.close()


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
