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
from typing import Final

import msgspec
import structlog

from edge_worker.adapters.artefact import cache_folder, load_artefact, resolve_model
from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.host_linux import LinuxHost
from edge_worker.adapters.spool_sqlite import SqliteSpool
from edge_worker.config import EngineName, WorkerSettings, broker_password, data_folder
from edge_worker.core.batching import EngineSettings
from edge_worker.core.health import HeatLimits, limits_of
from edge_worker.core.session import Session, SessionRules
from edge_worker.ports import HostFacts, InferenceEngine
from edge_worker.service import EngineRunner, ServiceParts, WorkerService, measure_speed
from edge_worker.service.intake import subscriptions
from fleet_protocol import __version__, bus, topics
from fleet_protocol.codec import encode
from fleet_protocol.errors import ConfigError
from fleet_protocol.manifest import GoldenPrompt
from fleet_protocol.messages import Benchmark, Presence, PresenceStatus, WorkerInfo
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.routing import RoutePolicy

SESSION_EXPIRY_S: Final = 86_400
"""The broker keeps what it has for a worker that is away for a day."""
SPOOL_FILE: Final = "spool.sqlite"
BENCHMARK_FILE: Final = "benchmark.json"

_log = structlog.get_logger()


class LoadedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine with what its artefact says beyond the engine port.

    Attributes:
        folder: Of the artefact; None without a model.
    """

    engine: InferenceEngine
    policy: RoutePolicy
    golden: tuple[GoldenPrompt, ...] = ()
    folder: Path | None = None


class _KeptBenchmark(msgspec.Struct, frozen=True, kw_only=True):
    """The last measurement and what it was taken of."""

    of: tuple[str, ...]
    benchmark: Benchmark


def steady_clock() -> Callable[[], int]:
    """Return a clock of UTC epoch milliseconds that never goes back within this process."""
    base_s = time.time() - time.monotonic()
    return lambda: int((base_s + time.monotonic()) * 1_000)


def load_engine(settings: WorkerSettings, environ: Mapping[str, str]) -> LoadedEngine:
    """Verify and load what answers.

    Raises:
        ModelError: The artefact is missing, damaged or not for this machine.
        ConfigError: The settings ask for what is not installed or cannot be.
    """
    if settings.engine is EngineName.ECHO:
        echo = EchoEngine(slots=settings.slot_count, context_tokens=settings.context)
        return LoadedEngine(engine=echo, policy=RoutePolicy(context_tokens=settings.context))
    try:
        # Only here: an echo worker must not pay for the runtime, nor need it.
        from edge_worker.adapters.onnx_engine import OnnxEngine  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ConfigError(
            f"the ONNX engine is not installed: {error}",
            hint="pip install 'edgefleet[edge]', or run with --engine echo",
        ) from error
    artefact = load_artefact(resolve_model(settings.model, cache_folder(environ)))
    engine = OnnxEngine(artefact, settings=_engine_settings(settings))
    routing = artefact.manifest.routing
    least = settings.min_confidence
    policy = RoutePolicy(
        context_tokens=engine.model.context_tokens,
        max_prompt_tokens=routing.max_prompt_tokens,
        min_confidence=routing.min_confidence if least is None else least,
    )
    golden = artefact.manifest.golden
    return LoadedEngine(engine=engine, policy=policy, golden=golden, folder=artefact.folder)


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


async def run_worker(settings: WorkerSettings, environ: Mapping[str, str]) -> None:
    """Run a worker until it is told to stop (SIGTERM, SIGINT) and has drained.

    Raises:
        FleetError: With a code and what to do next: see the command line's exit codes.
    """
    folder = open_data_folder(settings, environ)
    password = broker_password(settings.broker)
    host = LinuxHost(data=folder)
    loaded = load_engine(settings, environ)
    runner = EngineRunner(loaded.engine)
    now_ms = steady_clock()
    try:
        facts = host.facts()
        benchmark = await _benchmark(settings, runner, facts=facts, folder=folder, now_ms=now_ms)
        info = worker_info(settings, loaded.engine, facts=facts, benchmark=benchmark)
        names = topics.Topics(settings.broker.root)
        link = _bus_session(settings, names, boot=info.boot)
        async with MqttBus(settings.broker, link, password=password) as mqtt:
            parts = ServiceParts(
                worker=settings.worker,
                session=_session(settings, info, policy=loaded.policy, started_at_ms=now_ms()),
                bus=mqtt,
                spool=SqliteSpool(folder / SPOOL_FILE, max_mb=settings.spool_max_mb),
                runner=runner,
                host=host,
                topics=names,
                now_ms=now_ms,
                rng=random.Random(),  # noqa: S311 - jitter, not a secret
            )
            await _serve(WorkerService(parts), info)
    finally:
        runner.close()


def worker_info(
    settings: WorkerSettings,
    engine: InferenceEngine,
    *,
    facts: HostFacts,
    benchmark: Benchmark,
) -> WorkerInfo:
    """Return what the worker says it is, under the name of a new boot."""
    return WorkerInfo(
        boot=secrets.token_hex(4),
        software=__version__,
        board=facts.board,
        cpu=facts.cpu,
        cores=facts.cores,
        memory_mb=facts.memory_mb,
        slots=engine.slots,
        prefetch=settings.prefetch_count,
        models=(engine.model,),
        benchmark=benchmark,
        capabilities=(f"engine:{settings.engine}",),
        labels=settings.labels,
    )


async def _serve(service: WorkerService, info: WorkerInfo) -> None:
    """Run the service; the first signal drains it, a second one ends it at once."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(service.run(), name="worker-service")
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            _log.info("worker.draining")
            service.request_stop()
        else:
            running.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    _tune_garbage_collection()
    _log.info("worker.started", boot=info.boot, model=info.models[0].name, slots=info.slots)
    try:
        await running
    except asyncio.CancelledError:
        if signals < 2:
            raise
        _log.warning("worker.stopped_at_once")
    else:
        _log.info("worker.stopped")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _tune_garbage_collection() -> None:
    """Collect rarely: a job is a few short-lived values without cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _benchmark(
    settings: WorkerSettings,
    runner: EngineRunner,
    *,
    facts: HostFacts,
    folder: Path,
    now_ms: Callable[[], int],
) -> Benchmark:
    """Return the speed measured earlier on this very combination, or measure it now."""
    path = folder / BENCHMARK_FILE
    model = await runner.call(lambda engine: engine.model)
    threads, slots = str(settings.threads), str(settings.slot_count)
    of = (model.name, model.version, model.sha256, facts.cpu, threads, slots, __version__)
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_KeptBenchmark)
        if kept.of == of:
            return kept.benchmark
    except (OSError, msgspec.MsgspecError):
        pass  # Not measured yet, or by a release that wrote it down otherwise.
    speed = await runner.call(measure_speed)
    benchmark = Benchmark(
        decode_tok_s=speed.decode_tok_s,
        prefill_tok_s=speed.prefill_tok_s,
        measured_at_ms=now_ms(),
    )
    path.write_bytes(msgspec.json.encode(_KeptBenchmark(of=of, benchmark=benchmark)))
    _log.info("speed.measured", decode=speed.decode_tok_s, prefill=speed.prefill_tok_s)
    return benchmark


def _engine_settings(settings: WorkerSettings) -> EngineSettings:
    wanted = {
        "slots": settings.slot_count,
        "max_tokens": settings.context,
        "memory_mb": settings.memory_mb,
        "intra_op_threads": settings.threads,
        "provider": settings.provider,
    }
    try:
        return msgspec.convert(wanted, EngineSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the model's settings: {error}", hint="see example.toml") from error


def _session(
    settings: WorkerSettings, info: WorkerInfo, *, policy: RoutePolicy, started_at_ms: int
) -> Session:
    rules = SessionRules(
        policy=policy,
        heat=_heat_limits(settings, board=info.board),
        drain_timeout_ms=int(settings.drain_timeout_s * 1_000),
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
