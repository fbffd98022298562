"""The test fleet of a drill: real processes, each over a link of its own, each of them killable."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import msgspec

from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_cli.drill.faults import BROKER, CLOUD, DISPATCHER
from fleet_cli.drill.links import Links
from fleet_cli.drill.shifted_clock import shifted
from fleet_cli.local_fleet import StartError, free_port
from fleet_cli.supervisor import Child, ChildSpec, Service
from fleet_client.watch import FleetWatcher
from fleet_protocol.errors import FleetError
from fleet_protocol.manifest import DEFAULT_MODEL

_START_S: Final = 120.0
_DRAIN_S: Final = 5.0
_TICK_S: Final = 0.02
_AGAIN_S: Final = 0.3
_ELSEWHERE: Final = ("EDGEFLEET_DISPATCHER", "EDGEFLEET_WORKER", "DEEPSEEK_")
HAS_FULL_DISK: Final = hasattr(resource, "prlimit")
"""Only Linux lets one process bound the files of another."""


class DrillPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet to start.

    Attributes:
        engine: `echo`, or `onnx` with `model`.
        kind: Which broker.
        keeps: The broker saves what it has after every change, and has it again after a kill -9.
    """

    workers: tuple[str, ...]
    devices: tuple[str, ...]
    engine: str = "echo"
    model: str = DEFAULT_MODEL
    kind: BrokerKind
    keeps: bool = False


class UnaskedEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A process that ended, and nobody had asked it to.

    Attributes:
        last_words: The end of its log.
    """

    at_ms: float
    part: str
    exit_code: int
    last_words: str


class _Part(msgspec.Struct, kw_only=True):
    service: Service
    is_wanted: bool = True
    may_end: bool = False
    is_stalled: bool = False
    start_at_s: float = 0.0
    earlier_run: str | None = None


class DrillFleet:
    """Broker, cloud, dispatcher and workers. Lifetime is `with`; the main thread owns it.

    Attributes:
        links: Of dispatcher, workers and devices to the broker.
        ended: Processes that ended unasked; they are started again.
        kills: How often a running process was killed, by its kind.
    """

    def __init__(self, folder: Path, plan: DrillPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.ended: list[UnaskedEnd] = []
        self.kills: dict[str, int] = {}
        options = BrokerOptions(persistent=plan.keeps)
        self._broker = BrokerProcess(plan.kind, folder / BROKER, options=options)
        self.links = Links(self._broker.port)
        self._cloud_port = free_port()
        self._parts: dict[str, _Part] = {}
        self._watcher = FleetWatcher(self._broker.url, f"drill-{os.getpid()}")

    def __enter__(self) -> Self:
        """Start everything and wait until it serves.

        Raises:
            StartError: It does not.
        """
        self.links.__enter__()
        try:
            self._bring_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._watcher.__exit__()
        self.stop()
        self.links.__exit__()

    @property
    def store(self) -> Path:
        """The dispatcher's file."""
        return self.folder / DISPATCHER / "dispatcher.db"

    def stop(self) -> None:
        """End all processes in order: workers, dispatcher, cloud, broker."""
        parts = [part for _, part in reversed(self._parts.items())]
        self._parts = {}
        for part in parts:
            part.service.ask_to_stop()
            part.service.stop()

    def tick(self) -> None:
        """Start what should run and does not."""
        now_s = time.monotonic()
        for name, part in self._parts.items():
            code = part.service.exit_code()
            if not part.is_wanted or code is None or now_s < part.start_at_s:
                continue
            if not part.may_end:
                words = part.service.last_words()
                self.ended.append(
                    UnaskedEnd(
                        at_ms=time.time_ns() / 1e6, part=name, exit_code=code, last_words=words
                    )
                )
            part.may_end = True
            part.start_at_s = now_s + _AGAIN_S
            self._start_again(name, part)

    def is_free(self, name: str) -> bool:
        """Tell whether a process runs, undisturbed."""
        part = self._parts[name]
        return part.is_wanted and not part.is_stalled and part.service.exit_code() is None

    def is_serving(self, name: str) -> bool:
        """Tell whether this very run of dispatcher or a worker has said that it is there."""
        run = self._run_of(name)
        return run is not None and run != self._parts[name].earlier_run

    def _run_of(self, name: str) -> str | None:
        """Return the name of the run that says it is there: epoch or boot."""
        picture = self._watcher.picture
        if name == DISPATCHER:
            return (
                picture.dispatcher.epoch if picture.dispatcher and picture.has_dispatcher else None
            )
        worker = picture.workers.get(name)
        return worker.presence.boot if worker and worker.presence and worker.is_online else None

    def kill(self, name: str) -> None:
        """Kill -9, and keep it from coming back until `revive`."""
        part = self._parts[name]
        part.is_wanted = False
        os.kill(self._pid(name), signal.SIGKILL)
        kind = name.rstrip("0123456789")
        self.kills[kind] = self.kills.get(kind, 0) + 1

    def revive(self, name: str, *, shift_s: float = 0.0) -> None:
        """Let a process run again, with its clock off by `shift_s`."""
        part = self._parts[name]
        part.service.stop()
        if isinstance(part.service, Child):
            part.service = self._child(name, shift_s=shift_s)
        part.is_wanted = True
        self._start_again(name, part)

    def stop_one(self, name: str) -> None:
        """Ask a process to end; it is started again as soon as it has."""
        part = self._parts[name]
        part.may_end = True
        part.service.ask_to_stop()

    def stall(self, name: str) -> None:
        """Stop a process in the middle of whatever it does."""
        self._parts[name].is_stalled = True
        os.kill(self._pid(name), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a stalled process go on."""
        self._parts[name].is_stalled = False
        os.kill(self._pid(name), signal.SIGCONT)

    def fill_disk(self, name: str) -> None:
        """Let no file of a process grow: every write beyond its first byte fails."""
        self._limit_files(name, 1)

    def free_disk(self, name: str) -> None:
        """Let its files grow again."""
        self._limit_files(name, None)

    def forget(self) -> None:
        """Remove what the broker, which must not run, has kept."""
        for file in (self.folder / BROKER).glob("mosquitto.db*"):
            file.unlink()

    # ---------------------------------------------------------------- starting

    def _bring_up(self) -> None:
        self._start(BROKER, self._broker)
        self._watcher.__enter__()
        for name in (CLOUD, DISPATCHER):
            self._start(name, self._child(name))
        self._wait(DISPATCHER)
        for name in self.plan.workers:
            (self.folder / name).mkdir()
            self._start(name, self._child(name))
        for name in self.plan.workers:
            self._wait(name)

    def _start(self, name: str, service: Service) -> None:
        service.start()
        self._parts[name] = _Part(service=service)

    def _start_again(self, name: str, part: _Part) -> None:
        part.earlier_run = self._run_of(name) or part.earlier_run
        try:
            part.service.start()
        except (FleetError, OSError):
            return  # the next tick tries again
        part.may_end = False

    def _wait(self, name: str) -> None:
        give_up_at_s = time.monotonic() + _START_S
        while not self.is_serving(name):
            code = self._parts[name].service.exit_code()
            if code is not None or time.monotonic() > give_up_at_s:
                words = self._parts[name].service.last_words()
                raise StartError(f"{name} does not come up; its last words:\n{words}")
            time.sleep(_TICK_S)

    def _child(self, name: str, *, shift_s: float = 0.0) -> Child:
        words, extra = self._words(name)
        log = self.folder / f"{name}.log"
        environ = {**_bare_environment(), **extra}
        module, *rest = words
        line = shifted(shift_s, module, *rest)
        return Child(ChildSpec(words=line, environ=environ, log=log, stop_s=_DRAIN_S + 10.0))

    def _words(self, name: str) -> tuple[tuple[str, ...], Mapping[str, str]]:
        if name == CLOUD:
            words = ("cloud_dispatcher", "simulate-cloud", "--port", str(self._cloud_port))
            return (*words, "--latency-ms", "150"), {}
        broker = ("--broker", f"mqtt://127.0.0.1:{self.links.port(name)}")
        if name == DISPATCHER:
            data = ("--data", str(self.store.parent))
            return ("cloud_dispatcher", "run", *broker, *data), {
                "EDGEFLEET_DISPATCHER_PROVIDER__BASE_URL": f"http://127.0.0.1:{self._cloud_port}",
                "DEEPSEEK_API_KEY": "simulated",
            }
        engine = ("--engine", self.plan.engine, "--model", self.plan.model)
        data = ("--data", str(self.folder / name))
        return ("edge_worker", "run", "--id", name, *broker, *data, *engine), {
            "EDGEFLEET_WORKER_THREADS": "1",
            "EDGEFLEET_WORKER_SLOTS": "4",
            "EDGEFLEET_WORKER_DRAIN_TIMEOUT_S": str(_DRAIN_S),
            "EDGEFLEET_WORKER_MEASUREMENTS": str(self.folder / "benchmark.json"),
        }

    # ---------------------------------------------------------------- striking

    def _pid(self, name: str) -> int:
        service = self._parts[name].service
        pid = service.pid if isinstance(service, Child | BrokerProcess) else None
        if pid is None:
            raise ProcessLookupError(name)
        return pid

    def _limit_files(self, name: str, most_bytes: int | None) -> None:
        if sys.platform != "linux":
            raise OSError("only Linux lets one process bound the files of another")
        pid = self._pid(name)
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        soft = hard if most_bytes is None else most_bytes
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def _bare_environment() -> dict[str, str]:
    """Return our environment without a word about any other fleet, or a key of the cloud."""
    return {name: text for name, text in os.environ.items() if not name.startswith(_ELSEWHERE)}
