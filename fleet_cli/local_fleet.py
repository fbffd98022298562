"""A whole fleet on this machine, in one data folder: broker, dispatcher, workers, cloud or none."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from fleet_cli.broker import BrokerKind, BrokerProcess, choose_broker
from fleet_cli.context import DataFolder, FleetContext
from fleet_cli.exits import ExitCode
from fleet_cli.gateway import PORT_VARIABLE, configured_url
from fleet_cli.supervisor import Child, ChildSpec, Supervisor, environment, program
from fleet_client.credentials import password_of
from fleet_client.watch import FleetPicture, FleetWatcher
from fleet_protocol.errors import ConfigError, FleetError, RetryableError
from fleet_protocol.file_lock import FileLock
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.settings import BrokerSettings

_TICK_S = 0.2
_CRASHES_MOST = 3
_START_S = 120.0
_DRAIN_S = 10.0


class StartError(FleetError):
    """A part of the fleet does not come up."""

    code = "start_failed"


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet up` is to run.

    Attributes:
        workers: How many.
        engine: `onnx`, or `echo` for trying things without a model.
        threads: CPU threads of each worker.
        broker: A broker that runs already; None starts one.
        kind: Which one to start; None: the embedded one where it is installed, else Mosquitto.
        port: Where it shall listen; None: a free one, remembered in the folder.
        port_v3: Where it shall speak MQTT 3.1.1, if that is another port with it; None: likewise.
        simulates_cloud: Answer escalations with a simulator.
        config: The dispatcher's settings, a TOML file; None: its defaults.
    """

    workers: int = 3
    engine: str = "onnx"
    model: str = DEFAULT_MODEL
    threads: int = 1
    broker: BrokerSettings | None = None
    kind: BrokerKind | None = None
    port: int | None = None
    port_v3: int | None = None
    simulates_cloud: bool = False
    config: Path | None = None

    @property
    def worker_ids(self) -> tuple[str, ...]:
        """Ids of the workers."""
        return tuple(f"w{i}" for i in range(1, self.workers + 1))


class LocalFleet:
    """The fleet of one data folder. Lifetime is `with`; leaving stops everything in order.

    Args:
        folder: Holds everything it writes.
        plan: What to run.
        tell: Takes a line for the person who watches.
        stop: Set it to end `bring_up` and `serve` early.
    """

    def __init__(
        self,
        folder: DataFolder,
        plan: FleetPlan,
        *,
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._tell = tell
        self._stop = stop
        self._supervisor = Supervisor(tell)
        self._lock = FileLock(folder.lock)

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            ConfigError: It cannot be written, or a fleet is up in it.
        """
        self._folder.make()
        if holder := self._lock.take():
            raise ConfigError(
                f"a fleet is already up in {self._folder} (process {holder})",
                hint='use it: `fleet ask "..."`; or start another one with --data OTHER_DIR',
            )
        return self

    def __exit__(self, *exc: object) -> None:
        self._supervisor.stop_all()
        self._lock.let_go()

    def bring_up(self) -> FleetContext | None:
        """Start everything and wait until it answers; None if told to stop meanwhile.

        Raises:
            StartError: A part keeps crashing or does not answer; its last words were told.
        """
        context = self._start_broker()
        self._folder.write(context)
        # A broker that keeps what it retains may still show an earlier run: only a new one counts.
        since_ms = time.time_ns() // 1_000_000
        with FleetWatcher(context.broker, f"up-{os.getpid()}") as watcher:
            context = self._start_dispatcher(context)
            self._folder.write(context)
            self._wait(watcher, "dispatcher", partial(_serves, since_ms=since_ms))
            if self._stop.is_set():
                return None
            if self._plan.workers:
                self._tell(f"starting {', '.join(self._plan.worker_ids)}: measuring first ...")
            for worker in self._plan.worker_ids:
                self._start_worker(worker, context.broker)
            for worker in self._plan.worker_ids:
                self._wait(watcher, worker, partial(_works, worker=worker, since_ms=since_ms))
        return None if self._stop.is_set() else context

    def serve(self) -> None:
        """Look after everything until told to stop."""
        while not self._stop.wait(_TICK_S):
            self._supervisor.tick()

    def _start_broker(self) -> FleetContext:
        before = self._folder.read()
        ports = dict(before.ports) if before is not None else {}
        if self._plan.broker is not None:
            return FleetContext(
                broker=self._plan.broker, kind="external", pid=os.getpid(), ports=ports
            )
        kind = self._plan.kind or choose_broker()
        _check_ports(self._plan, kind)
        broker = BrokerProcess(
            kind,
            self._folder.broker,
            port=self._plan.port or self._port(f"{kind}", ports, but=self._plan.port_v3),
            port_v3=self._plan.port_v3 or self._port(f"{kind}_v3", ports, but=self._plan.port),
        )
        self._start_surely(broker)
        self._tell(f"broker ({kind}) listens on {_ports(broker)}")
        kept = {f"{kind}": broker.port, f"{kind}_v3": broker.port_v3}
        return FleetContext(
            broker=BrokerSettings(url=broker.url),
            url_v3=broker.url_v3,
            kind=kind,
            pid=os.getpid(),
            ports={**ports, **kept},
        )

    def _start_surely(self, broker: BrokerProcess) -> None:
        """Start the broker; on a very busy machine the embedded one may fail at first."""
        for tries_left in (2, 1, 0):
            try:
                self._supervisor.start("broker", broker)
            except RetryableError:
                if not tries_left:
                    raise
            else:
                return

    def _port(self, name: str, ports: dict[str, int], *, but: int | None = None) -> int:
        """Return the port of the last run, or a free one if something else has it now.

        `but`: A port that is wanted for something else from now on.
        """
        before = ports.get(name) if ports.get(name) != but else None
        port = free_port(before)
        if before is not None and port != before:
            self._tell(f"port {before} is taken by another program: using {port} from now on")
        return port

    def _start_dispatcher(self, context: FleetContext) -> FleetContext:
        extra = _broker_environment("EDGEFLEET_DISPATCHER", context.broker)
        if self._plan.simulates_cloud:
            port = self._port("cloud", context.ports)
            context = msgspec.structs.replace(context, ports={**context.ports, "cloud": port})
            words = ("cloud_dispatcher", "simulate-cloud", "--port", str(port))
            self._start("cloud", words, environment({}))
            extra["EDGEFLEET_DISPATCHER_PROVIDER__BASE_URL"] = f"http://127.0.0.1:{port}"
            extra["DEEPSEEK_API_KEY"] = "simulated"
            self._tell("the cloud is SIMULATED: its answers say so and mean nothing")
        elif self._plan.config is None and not os.environ.get("DEEPSEEK_API_KEY"):
            self._tell("no DEEPSEEK_API_KEY is set: nothing can be escalated to the cloud")
        url = configured_url(self._plan.config, os.environ)
        if url is None:
            port = self._port("gateway", context.ports)
            ports = {**context.ports, "gateway": port}
            context = msgspec.structs.replace(context, ports=ports)
            extra[PORT_VARIABLE] = str(port)
            url = f"http://127.0.0.1:{port}"
        context = msgspec.structs.replace(context, gateway=url)
        words = ("cloud_dispatcher", "run", "--broker", _bare_url(context.broker))
        data = ("--data", str(self._folder.dispatcher))
        config = ("--config", str(self._plan.config)) if self._plan.config else ()
        self._start("dispatcher", (*words, *data, *config), environment(extra))
        return context

    def _start_worker(self, worker: str, broker: BrokerSettings) -> None:
        folder = self._folder.worker(worker)
        folder.mkdir(parents=True, exist_ok=True)
        words = (
            *("edge_worker", "run", "--id", worker, "--broker", _bare_url(broker)),
            *("--data", str(folder), "--engine", self._plan.engine, "--model", self._plan.model),
        )
        # No key of the cloud ever reaches a worker.
        extra = {
            "EDGEFLEET_WORKER_THREADS": str(self._plan.threads),
            "EDGEFLEET_WORKER_DRAIN_TIMEOUT_S": str(_DRAIN_S),
            # All workers here are alike: the first one measures, undisturbed by the others.
            "EDGEFLEET_WORKER_MEASUREMENTS": str(folder.parent / "benchmark.json"),
            **_broker_environment("EDGEFLEET_WORKER", broker),
        }
        environ = environment(extra, without=("DEEPSEEK_API_KEY",))
        self._start(worker, words, environ)

    def _start(self, name: str, words: tuple[str, ...], environ: dict[str, str]) -> None:
        log = self._folder.logs / f"{name}.log"
        spec = ChildSpec(words=program(*words), environ=environ, log=log, stop_s=_DRAIN_S + 5.0)
        self._supervisor.start(name, Child(spec))

    def _wait(
        self, watcher: FleetWatcher, name: str, is_up: Callable[[FleetPicture], bool]
    ) -> None:
        """Wait until a part of the fleet says that it is there."""
        give_up_at_s = time.monotonic() + _START_S
        while not self._stop.is_set():
            if watcher.wait_until(is_up, timeout_s=_TICK_S):
                self._tell(f"{name} is online")
                return
            if self._supervisor.exit_code(name) == ExitCode.USAGE:
                # To start it again with the same settings would change nothing.
                raise self._failure(name, "cannot start")
            self._supervisor.tick()
            if self._supervisor.crashes(name) >= _CRASHES_MOST:
                raise self._failure(name, "keeps crashing")
            if time.monotonic() > give_up_at_s:
                raise self._failure(name, f"says nothing for {_START_S:g} s")

    def _failure(self, name: str, what: str) -> StartError:
        log = self._folder.logs / f"{name}.log"
        self._tell(f"the last words of {name}:\n{self._supervisor.last_words(name)}")
        return StartError(f"{name} {what}", hint=f"its last words are above, all of them in {log}")


def free_port(wanted: int | None = None) -> int:
    """Return `wanted` if nothing listens there on loopback, else a port that is free."""
    for port in (wanted, 0):
        if port is None:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    raise StartError("no port is free on 127.0.0.1", hint="close some connections")


def _serves(picture: FleetPicture, *, since_ms: int) -> bool:
    word = picture.dispatcher
    return picture.has_dispatcher and word is not None and word.since_at_ms >= since_ms


def _works(picture: FleetPicture, *, worker: str, since_ms: int) -> bool:
    seen = picture.workers.get(worker)
    if seen is None or not seen.is_online or seen.presence is None:
        return False
    return seen.presence.since_at_ms >= since_ms


def _check_ports(plan: FleetPlan, kind: BrokerKind) -> None:
    if plan.port_v3 is None:
        return
    if kind is BrokerKind.MOSQUITTO:
        raise ConfigError(
            "Mosquitto speaks all versions of MQTT on one port", hint="give that one with --port"
        )
    if plan.port_v3 == plan.port:
        raise ConfigError(
            f"the embedded broker cannot speak both versions of MQTT on port {plan.port}",
            hint="give --port-v3 for MQTT 3.1.1 and another --port, or --broker-kind mosquitto",
        )


def _ports(broker: BrokerProcess) -> str:
    """Say where which version is spoken: on the wrong port a client only sees a lost connection."""
    if broker.port == broker.port_v3:
        return broker.url
    return f"{broker.url} for MQTT 5, {broker.url_v3} for MQTT 3.1.1"


def _bare_url(broker: BrokerSettings) -> str:
    """Return the URL without user and password: a command line is for all to read."""
    scheme = "mqtts" if broker.uses_tls else "mqtt"
    return f"{scheme}://{broker.host}:{broker.port}"


def _broker_environment(prefix: str, broker: BrokerSettings) -> dict[str, str]:
    """Return the settings of a broker that do not fit into its bare URL."""
    secret = password_of(broker)
    extra = {
        "ROOT": broker.root,
        "USERNAME": broker.user,
        "PASSWORD": secret,
        "TLS__CA_FILE": broker.tls.ca_file if broker.tls else None,
    }
    return {f"{prefix}_BROKER__{name}": v for name, v in extra.items() if v is not None}
