"""The composition root: settings in, a running worker out."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from edge_worker.adapters.host_linux import LinuxHost
from edge_worker.adapters.measurements import MeasurementFile
from edge_worker.adapters.spool_sqlite import SqliteSpool, open_sealer
from edge_worker.config import WorkerSettings, broker_password, data_folder
from edge_worker.core.events import SpeedMeasured
from edge_worker.core.health import HeatLimits, limits_of
from edge_worker.core.rules import SessionRules
from edge_worker.core.session import Session
from edge_worker.core.tuning import Measurement
from edge_worker.loading import (
    MEASUREMENT_FILE,
    LoadedEngine,
    Measuring,
    load_engine,
    measure_again,
)
from edge_worker.ports import HostFacts, InferenceEngine
from edge_worker.service import EngineRunner, ServiceParts, WorkerService
from edge_worker.service.intake import subscriptions
from edge_worker.service.renewing import CertificateKeeper
from edge_worker.service.signals import StopSignals
from fleet_protocol import __version__, bus, topics
from fleet_protocol.codec import encode
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import (
    JOINT_ASSIGNMENTS,
    Benchmark,
    Presence,
    PresenceStatus,
    WorkerInfo,
)
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.systemd import ServiceNotifier

SESSION_EXPIRY_S: Final = 86_400
"""The broker keeps what it has for a worker that is away for a day."""
SPOOL_FILE: Final = "spool.sqlite"

_log = structlog.get_logger()


def steady_clock() -> Callable[[], int]:
    """Return a clock of UTC epoch milliseconds that never goes back within this process."""
    base_s = time.time() - time.monotonic()
    return lambda: int((base_s + time.monotonic()) * 1_000)


def open_data_folder(settings: WorkerSettings, environ: Mapping[str, str]) -> Path:
    """Return the data folder, made if it was not there.

    Raises:
        ConfigError: It cannot be made.
    """
    folder = data_folder(settings, environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the data folder {folder} cannot be made: {error.strerror}",
            hint="give --data a folder that this user may write",
        ) from error
    return folder


def measurement_file(settings: WorkerSettings, environ: Mapping[str, str]) -> MeasurementFile:
    """Return what was measured on this machine.

    Raises:
        ConfigError: The data folder cannot be made.
    """
    folder = open_data_folder(settings, environ)
    if settings.measurements is not None:
        return MeasurementFile(Path(settings.measurements).expanduser())
    return MeasurementFile(folder / MEASUREMENT_FILE)


def run_worker(settings: WorkerSettings, environ: Mapping[str, str]) -> None:
    """Run a worker until it is told to stop (SIGTERM, SIGINT) and has drained.

    Until it is connected it holds no job, and the first signal ends it at once.

    Raises:
        FleetError: With a code and what to do next: see the command line's exit codes.
        KeyboardInterrupt: SIGINT ended it at once.
    """
    notifier = ServiceNotifier.of(environ)
    with StopSignals() as stop:
        try:
            notifier.doing("loading the model, and measuring where it never ran before")
            loaded = _load(settings, environ)
            asyncio.run(_run(settings, environ, loaded=loaded, watch=Watch(stop, notifier)))
        except (KeyboardInterrupt, asyncio.CancelledError):
            if stop.last is None:
                raise
            _log.warning("worker.stopped_at_once", signal=stop.last.name)
            if stop.last is signal.SIGINT:
                raise KeyboardInterrupt from None


def _load(settings: WorkerSettings, environ: Mapping[str, str]) -> LoadedEngine:
    """Load the engine before there is a loop: a signal ends this wherever it is."""
    measuring = Measuring(
        file=measurement_file(settings, environ),
        report=lambda line: _log.info("setup.tried", found=line),
    )
    loaded = load_engine(settings, environ, measuring=measuring)
    _log_choice(loaded)
    return loaded


class Watch(NamedTuple):
    """Who tells the worker to stop, and whom the worker tells how it is."""

    stop: StopSignals
    notifier: ServiceNotifier


async def _run(
    settings: WorkerSettings, environ: Mapping[str, str], *, loaded: LoadedEngine, watch: Watch
) -> None:
    watch.stop.watch()
    folder = open_data_folder(settings, environ)
    measure = _meter(loaded.measured, measurement_file(settings, environ))
    runner = EngineRunner(loaded.engine, measure=measure)
    try:
        password = broker_password(settings.broker)
        host = LinuxHost(data=folder)
        info = worker_info(settings, loaded, facts=host.facts())
        names = topics.Topics(settings.broker.root)
        link = _bus_session(settings, names, boot=info.boot)
        keeper = certificate_keeper(settings)
        if keeper is not None:
            watch.notifier.doing("waiting for the clock, where it is before the certificate")
            await keeper.wait_for_clock()
        now_ms = steady_clock()
        watch.notifier.doing(f"connecting to {settings.broker.host}:{settings.broker.port}")
        async with MqttBus(settings.broker, link, password=password) as mqtt:
            parts = ServiceParts(
                worker=settings.worker,
                session=_session(settings, info, loaded=loaded, started_at_ms=now_ms()),
                bus=mqtt,
                spool=SqliteSpool(
                    folder / SPOOL_FILE,
                    max_mb=settings.spool_max_mb,
                    cache_mb=settings.cache_mb,
                    sealer=open_sealer(settings.spool_key_file),
                ),
                runner=runner,
                host=host,
                topics=names,
                now_ms=now_ms,
                rng=random.Random(),  # noqa: S311 - jitter, not a secret
                keeper=keeper,
                alive=watch.notifier.alive,
            )
            await _serve(WorkerService(parts), info, watch=watch)
    finally:
        runner.close()


def certificate_keeper(settings: WorkerSettings) -> CertificateKeeper | None:
    """Return what looks after the certificate that the broker is shown; None if none is.

    Raises:
        IdentityError: It cannot be read.
    """
    tls = settings.broker.tls
    if tls is None or tls.cert_file is None or tls.key_file is None:
        return None
    # Only who shows a certificate loads a library of cryptography.
    from edge_worker.adapters.identity import IdentityFiles  # noqa: PLC0415

    files = IdentityFiles(settings.worker, certificate=Path(tls.cert_file), key=Path(tls.key_file))
    return CertificateKeeper(
        files,
        # Certificates are judged by the clock as it is, also where it steps.
        wall_ms=lambda: time.time_ns() // 1_000_000,
        spread=random.random(),  # noqa: S311 - jitter, not a secret
    )


def worker_info(settings: WorkerSettings, loaded: LoadedEngine, *, facts: HostFacts) -> WorkerInfo:
    """Return what the worker says it is, under the name of a new boot."""
    engine = loaded.engine
    model = msgspec.structs.replace(engine.model, variant=loaded.setup.variant)
    capabilities = [f"engine:{settings.engine}", JOINT_ASSIGNMENTS]
    if loaded.folder is not None:
        capabilities += [f"provider:{loaded.setup.provider}", f"threads:{loaded.setup.threads}"]
    return WorkerInfo(
        boot=secrets.token_hex(4),
        software=__version__,
        board=facts.board,
        cpu=facts.cpu,
        cores=facts.cores,
        memory_mb=facts.memory_mb,
        slots=engine.slots,
        prefetch=settings.prefetch_count,
        models=(model,),
        benchmark=None if loaded.measured is None else benchmark_of(loaded.measured),
        capabilities=tuple(capabilities),
        labels=settings.label_values,
    )


def benchmark_of(measured: Measurement) -> Benchmark:
    """Return what the fleet is told of a measurement."""
    return Benchmark(
        decode_tok_s=measured.chosen.decode_tok_s,
        prefill_tok_s=measured.chosen.prefill_tok_s,
        measured_at_ms=measured.measured_at_ms,
    )


def _log_choice(loaded: LoadedEngine) -> None:
    speed = {}
    if loaded.measured is not None:
        chosen = loaded.measured.chosen
        speed = {
            "decode": chosen.decode_tok_s,
            "prefill": chosen.prefill_tok_s,
            "steady": loaded.measured.is_steady,
        }
    _log.info("setup.chosen", setup=str(loaded.setup), why=loaded.why, **speed)


def _meter(
    first: Measurement | None, file: MeasurementFile
) -> Callable[[InferenceEngine], SpeedMeasured]:
    """Return what measures the running engine anew and writes it down; in the engine's thread."""

    def measure(engine: InferenceEngine) -> SpeedMeasured:
        # Two that measure at once disturb each other, and workers that started together become
        # idle together: the other one comes first, this one at its next date.
        with file.alone() as is_alone:
            if first is None or not is_alone:
                return SpeedMeasured(speed=None)
            found = measure_again(engine, first)
        _log.info("speed.measured", decode=found.chosen.decode_tok_s, steady=found.is_steady)
        file.keep(found)
        return SpeedMeasured(speed=benchmark_of(found), is_steady=found.is_steady)

    return measure


async def _serve(service: WorkerService, info: WorkerInfo, *, watch: Watch) -> None:
    """Run the service; the first signal drains it, a second one ends it at once."""

    def drain() -> None:
        _log.info("worker.draining")
        watch.notifier.stopping()
        service.request_stop()

    watch.stop.drain_with(drain)
    _tune_garbage_collection()
    _log.info("worker.started", boot=info.boot, model=info.models[0].name, slots=info.slots)
    await service.run()
    _log.info("worker.stopped")


def _tune_garbage_collection() -> None:
    """Collect rarely: a job is a few short-lived values without cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _session(
    settings: WorkerSettings, info: WorkerInfo, *, loaded: LoadedEngine, started_at_ms: int
) -> Session:
    measured = loaded.measured
    rules = SessionRules(
        policy=loaded.policy,
        difficulty=loaded.difficulty,
        speed_due_at_ms=None if measured is None else measured.due_at_ms(),
        heat=_heat_limits(settings, board=info.board),
        disk_low_mb=settings.disk_low_mb,
        drain_timeout_ms=int(settings.drain_timeout_s * 1_000),
        cache_bytes=settings.cache_mb * 1_048_576,
    )
    return Session(worker=settings.worker, info=info, rules=rules, started_at_ms=started_at_ms)


def _heat_limits(settings: WorkerSettings, *, board: str) -> HeatLimits:
    try:
        return limits_of(board, soft_c=settings.limit_c, critical_c=settings.critical_c)
    except ValueError as error:
        raise ConfigError(str(error), hint="see example.toml") from error


def _bus_session(settings: WorkerSettings, names: topics.Topics, *, boot: str) -> bus.Session:
    gone = Presence(status=PresenceStatus.OFFLINE, boot=boot)
    will = bus.Publication(
        topic=names.name(topics.PRESENCE, settings.worker), payload=encode(gone), retain=True
    )
    return bus.Session(
        client_id=names.client_id(settings.worker),
        subscriptions=subscriptions(names, settings.worker),
        will=will,
        expiry_s=SESSION_EXPIRY_S,
    )
