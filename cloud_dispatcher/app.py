"""The composition root: the only place that knows every part by name."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final

import msgspec

from cloud_dispatcher.adapters.alert_file import AlertFile
from cloud_dispatcher.adapters.audit_file import AuditFile
from cloud_dispatcher.adapters.clock_file import ClockFile
from cloud_dispatcher.adapters.http.gateway import build_gateway, describe, open_keys
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.adapters.http.login_file import LoginFile
from cloud_dispatcher.adapters.http.server import serving
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.adapters.http.webhook_courier import WebhookCourier
from cloud_dispatcher.adapters.memory_linux import LinuxMemory
from cloud_dispatcher.adapters.offline_library import FileLibrary
from cloud_dispatcher.adapters.providers import NoProvider, build_provider
from cloud_dispatcher.adapters.secret_file import broker_password
from cloud_dispatcher.adapters.stores import build_cluster_store, build_store, probe_store
from cloud_dispatcher.adapters.tracing_settings import build_tracing
from cloud_dispatcher.config import DispatcherSettings
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.members import Member, MemberId
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.membership import ClusterStore
from cloud_dispatcher.metrics import FleetCounts
from cloud_dispatcher.observers import JobLog
from cloud_dispatcher.outside import Outside
from cloud_dispatcher.ports import CompletionProvider, JobStore
from cloud_dispatcher.presence import CLUSTER_EPOCH, member_session_of, session_of
from cloud_dispatcher.scraping import Scrape
from cloud_dispatcher.service import DispatcherService
from fleet_protocol.bus import Session
from fleet_protocol.errors import FleetError
from fleet_protocol.mqtt import BusLimits, MqttBus
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.systemd import ServiceNotifier
from fleet_protocol.topics import Topics

_CHECK_TIMEOUT_S: Final = 3.0
_KEEPALIVE_LEAST_S: Final = 5


def attentive(settings: DispatcherSettings) -> BrokerSettings:
    """Return how the dispatcher connects: who finds its link dead before it finds its workers so.

    A link whose other end is gone is noticed within one and a half keepalives. Were that longer
    than the silence for which a worker counts as gone, all of them would.
    """
    broker = settings.broker
    keepalive_s = max(_KEEPALIVE_LEAST_S, settings.engine.worker_silence_ms // 2_000)
    return msgspec.structs.replace(broker, keepalive_s=min(broker.keepalive_s, keepalive_s))


async def run(settings: DispatcherSettings, environ: Mapping[str, str]) -> None:
    """Run the dispatcher until SIGTERM or SIGINT.

    Raises:
        FleetError: It cannot start, or cannot go on; see `DispatcherService.run`.
    """
    notifier = ServiceNotifier.of(environ)
    notifier.doing(f"connecting to {settings.broker.host}:{settings.broker.port}")
    _tune_garbage_collection()
    clock_file = ClockFile(Path(settings.store.path).with_suffix(".clock"))
    clock = clock_file.start()
    epoch = KeyMint(secrets.randbits).mint(clock())
    topics = Topics(settings.broker.root)
    member = _member(settings, epoch)
    if member is not None:
        epoch = CLUSTER_EPOCH
    session = _session(settings, topics, epoch, member)
    bus = MqttBus(attentive(settings), session, password=broker_password(settings.broker))
    provider = _provider(settings, environ)
    shared: ClusterStore | None = None
    if member is not None:
        shared = build_cluster_store(settings.store, member, lease_s=settings.cluster.lease_s)
    store = build_store(settings.store) if shared is None else shared
    library = _library(settings)
    keys = open_keys(settings.gateway)
    counts, has_gateway = FleetCounts(), settings.gateway.port is not None
    noting = asyncio.create_task(clock_file.keep(clock), name="clock-note")
    try:
        async with store, AuditFile(settings.audit) as audit, AsyncExitStack() as running:
            courier = _courier(settings, store, clock)
            if courier is not None:
                await running.enter_async_context(courier)
            logins = await running.enter_async_context(_logins(settings))
            tracing = build_tracing(settings.tracing)
            if tracing is not None:  # What was not sent yet may take a while.
                running.push_async_callback(asyncio.to_thread, tracing.close)
            outside = Outside(
                bus=bus,
                store=store,
                provider=provider,
                clock=clock,
                topics=topics,
                epoch=epoch,
                observers=(
                    JobLog(),
                    audit,
                    *((counts,) if has_gateway else ()),
                    *(() if courier is None else (courier,)),
                    *(() if tracing is None else (tracing,)),
                ),
                library=library,
                memory=LinuxMemory().used_pct,
                alerts=AlertFile(Path(settings.store.path).with_suffix(".alerts")),
                home_assistant=settings.home_assistant,
                payers=tuple if keys is None else keys.payers,
                inquired=audit.asked,
                alive=notifier.alive,
                shared=shared,
                cluster=settings.cluster,
            )
            tariff = _tariff(settings)
            engine = Engine(
                settings.engine,
                epoch,
                tariff=tariff,
                offline=library.answer,
                has_cloud=bool(provider.endpoints),
            )
            service = DispatcherService(engine, outside, settings.housekeeping)
            scrape = Scrape(
                counts,
                engine=engine,
                service=service,
                provider=provider,
                clock=clock,
            )
            inside = Inside(
                local=service.local,
                store=store,
                is_ready=lambda: service.is_ready,
                has_cloud=lambda: bool(provider.endpoints),
                workers=engine.workers,
                roll=engine.roll,
                metrics=scrape.families,
                clock=clock,
                history=service.history,
                broker=settings.broker,
                webhooks=courier,
                keys=keys,
                logins=logins,
                audit=audit.note,
                root=settings.broker.root,
            )
            await _serve(service, inside, settings.gateway, notifier=notifier)
    finally:
        noting.cancel()
        await provider.close()


async def _serve(
    service: DispatcherService,
    inside: Inside,
    settings: GatewaySettings,
    *,
    notifier: ServiceNotifier,
) -> None:
    """Run until a signal. The gateway ends first, while jobs can still end with it."""
    if settings.port is None:
        with _stopped_by_signals(service.stop, notifier):
            await service.run()
        return
    stopping = asyncio.Event()
    with _stopped_by_signals(stopping.set, notifier):
        async with serving(build_gateway(inside, settings), settings):
            running = asyncio.create_task(service.run(), name="dispatcher")
            told = asyncio.create_task(stopping.wait(), name="stop-signal")
            await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
        service.stop()
        await running


def _member(settings: DispatcherSettings, run: str) -> Member | None:
    """Return who we are among several dispatchers; None: there is only one."""
    name = settings.cluster.name
    return None if name is None else Member(id=MemberId(run), name=name)


def _session(
    settings: DispatcherSettings, topics: Topics, epoch: str, member: Member | None
) -> Session:
    """Return who we are to the broker: each of several dispatchers has a name of its own."""
    client_id = settings.client_id
    if member is not None:
        return member_session_of(topics, client_id=f"{client_id}-{member.name}")
    return session_of(topics, epoch, client_id=client_id, expiry_s=settings.session_expiry_s)


def _provider(settings: DispatcherSettings, environ: Mapping[str, str]) -> CompletionProvider:
    return build_provider(settings.provider, environ, backups=settings.backup, cloud=settings.cloud)


def _courier(
    settings: DispatcherSettings, store: JobStore, clock: Callable[[], int]
) -> WebhookCourier | None:
    webhooks = settings.gateway.webhooks
    if settings.gateway.port is None or webhooks.secret_file is None:
        return None
    path = Path(settings.store.path).with_suffix(".webhooks")
    return WebhookCourier(webhooks, path, store, clock)


def _logins(settings: DispatcherSettings) -> AbstractAsyncContextManager[LoginFile | None]:
    if settings.gateway.port is None or settings.gateway.page.users_file is None:
        return nullcontext()
    return LoginFile(Path(settings.store.path).with_suffix(".logins"))


def _library(settings: DispatcherSettings) -> FileLibrary:
    """A bad file keeps nobody from starting: the service reads it, and says so."""
    file = settings.library.file
    return FileLibrary(None if file is None else Path(file).expanduser())


def _tariff(settings: DispatcherSettings) -> Callable[[int], int]:
    """The first endpoint's: it is the one that jobs wait for."""
    prices, model = settings.cloud.prices(), settings.provider.model
    return lambda now_ms: prices.offpeak_at_ms(model, at_ms=now_ms)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was checked. `error` is None if it is as it should be."""

    name: str
    detail: str
    error: FleetError | None = None


async def check(settings: DispatcherSettings, environ: Mapping[str, str]) -> list[Finding]:
    """Look whether the dispatcher would run with these settings. Changes nothing."""

    async def store() -> str:
        found = await probe_store(settings.store)
        member = _member(settings, "check")
        if member is None:
            return found
        build_cluster_store(settings.store, member, lease_s=settings.cluster.lease_s)
        return f"{found}; shared with other dispatchers, as {member.name}"

    async def broker() -> str:
        # An identity of its own: the dispatcher's would throw a running one off the broker.
        name = f"{settings.client_id[:20]}-check-{secrets.token_hex(4)}"
        password = broker_password(settings.broker)
        limits = BusLimits(connect_timeout_s=_CHECK_TIMEOUT_S)
        bus = MqttBus(settings.broker, Session(client_id=name), password=password, limits=limits)
        async with bus:
            return f"{settings.broker.host}:{settings.broker.port} answers"

    async def provider() -> str:
        found = _provider(settings, environ)
        chain = ", then ".join(f"{each.name}, model {each.model}" for each in found.endpoints)
        await found.close()
        if isinstance(found, NoProvider):
            return f"none ({settings.provider.api_key_env} is not set): boards answer alone"
        return chain

    async def library() -> str:
        found = _library(settings)
        if not await found.refresh():
            return "none: where nobody answers, jobs fail"
        if found.trouble is not None:
            raise found.trouble
        rest = "a default" if found.has_default else "no default"
        return f"{settings.library.file}: {len(found)} entries, {rest}"

    async def gateway() -> str:
        return await asyncio.to_thread(describe, settings.gateway)

    topics = f"root {Topics(settings.broker.root).root}, identity {settings.client_id}"
    findings = [Finding(name="settings", detail=topics)]
    for look in (store, broker, provider, library, gateway):
        try:
            findings.append(Finding(name=look.__name__, detail=await look()))
        except FleetError as error:
            findings.append(Finding(name=look.__name__, detail=str(error), error=error))
    return findings


def _tune_garbage_collection() -> None:
    """Collect rarely: every job is a few short-lived values without cycles (6 % of the CPU)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None], notifier: ServiceNotifier) -> Iterator[None]:
    def told() -> None:
        notifier.stopping()
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
