"""Our own fleet as a benchmark needs it: broker, dispatcher and echo workers, each a process."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from bench.processes import cpu_s, module, process
from bench.sides import Run
from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol import codec, topics
from fleet_protocol.bus import BusEvent, Delivery, Publication, Session
from fleet_protocol.messages import Caching, JobResult, JobStatus, JobSubmit
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

SLOTS = 64
PREFETCH = 192
PROMPT = "is the reading of 21.5 C in hall 3 within the limits? " + "x" * 150
TOPICS = topics.Topics()
_ANSWER_WITHIN_S = 60.0


class Device:
    """Publishes submissions and times each result.

    Attributes:
        failed: Results that were no answer, by their status or code.
    """

    def __init__(self, bus: MqttBus, *, name: str = "bench") -> None:
        self.failed: dict[str, int] = {}
        self._bus = bus
        self._name = name
        self._run_id = uuid.uuid4().hex[:12]
        self._payload = codec.encode(JobSubmit(prompt=PROMPT, cache=Caching.OFF))
        self._sent = 0
        self._started: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """Jobs whose result is not here."""
        return len(self._started)

    async def run(self, *, seconds: float, window: int) -> Run:
        """Keep `window` jobs in flight for so long, then wait for the last ones."""
        latencies: list[float] = []
        begun = time.perf_counter()
        until = begun + seconds
        while True:
            while len(self._started) < window and time.perf_counter() < until:
                self.submit()
            if not self._started:
                break
            latencies += await self.collect()
        return Run(wall_s=time.perf_counter() - begun, latencies_s=latencies)

    def submit(self, payload: bytes | None = None) -> None:
        """Publish one job."""
        job = f"{self._run_id}-{self._sent}"
        topic = TOPICS.name(topics.SUBMIT, self._name, job)
        self._bus.publish(Publication(topic=topic, payload=payload or self._payload))
        self._started[job] = time.perf_counter()
        self._sent += 1

    async def collect(self) -> list[float]:
        """Wait for results; return what each one took in seconds."""
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            events = await self._bus.receive()
        return self.take(events)

    def take(self, events: list[BusEvent]) -> list[float]:
        """Take results; return what each one took in seconds."""
        deliveries = [event for event in events if isinstance(event, Delivery)]
        now, took = time.perf_counter(), []
        for delivery in deliveries:
            result = codec.decode_as(JobResult, delivery.payload)
            begun = self._started.pop(result.id, None)
            if begun is None:
                continue
            took.append(now - begun)
            if result.status is not JobStatus.OK:
                why = result.code or str(result.status)
                self.failed[why] = self.failed.get(why, 0) + 1
        self._bus.acknowledge(deliveries)
        return took


class OwnFleet:
    """A running fleet; the first side of a comparison.

    Attributes:
        dispatcher: Its process.
        workers: Theirs.
    """

    def __init__(
        self,
        broker: BrokerProcess,
        folder: Path,
        dispatcher: psutil.Process,
        workers: tuple[psutil.Process, ...],
    ) -> None:
        self.broker = broker
        self.dispatcher = dispatcher
        self.workers = workers
        self._folder = folder
        self._answered = 0

    @property
    def url(self) -> str:
        """Where the broker is."""
        return self.broker.url

    def run(self, *, seconds: float, window: int) -> Run:
        """Be a device for a while; the processor time is the dispatcher's."""
        cpu = cpu_s(self.dispatcher)
        run = asyncio.run(self._run(seconds, window))
        run.cpu_s = cpu_s(self.dispatcher) - cpu
        self._answered += run.jobs
        return run

    async def _run(self, seconds: float, window: int) -> Run:
        async with MqttBus(BrokerSettings(url=self.url), device_session()) as bus:
            device = Device(bus)
            run = await device.run(seconds=seconds, window=window)
        if device.failed:
            raise RuntimeError(f"jobs without an answer: {device.failed}")
        return run

    def check(self) -> None:
        """Look whether the disk has every job that was answered.

        Raises:
            SystemExit: It does not.
        """
        stored = stored_jobs(self._folder)
        if stored != self._answered:
            raise SystemExit(f"{stored} jobs on the disk, {self._answered} were answered")


def device_session(name: str = "bench") -> Session:
    """Return the session of a device that wants its results."""
    return Session(client_id=name, subscriptions=(TOPICS.filter(topics.RESULT, name),))


def stored_jobs(folder: Path) -> int:
    """Return how many answered jobs a dispatcher's database holds."""
    path = next(folder.glob("dispatcher/**/*.db"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("select count(*) from jobs where status = 'ok'").fetchone()[0])


@contextlib.contextmanager
def dispatcher_process(
    url: str, folder: Path, environ: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run a dispatcher until the block ends."""
    words = ["run", "--broker", url, "--data", folder / "dispatcher"]
    command = module("cloud_dispatcher", *words)
    with process(command, log=folder / "dispatcher.log", environ=environ) as one:
        yield one


@contextlib.contextmanager
def own_fleet(
    folder: Path,
    kind: BrokerKind,
    *,
    environ: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Iterator[OwnFleet]:
    """Run a fleet until the block ends.

    Args:
        folder: Empty; for everything that it writes.
        kind: Of the broker.
        environ: The dispatcher's settings, where they are not its defaults.
        workers: Echo workers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with BrokerProcess(kind, folder / "broker") as broker, contextlib.ExitStack() as stack:
        dispatcher = stack.enter_context(dispatcher_process(broker.url, folder, environ))
        names = [f"echo{number}" for number in range(workers)]
        boards = [stack.enter_context(_worker(broker.url, folder, name)) for name in names]
        asyncio.run(ready(broker.url, names))
        yield OwnFleet(broker, folder, dispatcher, tuple(boards))


@contextlib.contextmanager
def _worker(url: str, folder: Path, name: str) -> Iterator[psutil.Process]:
    words = ["run", "--id", name, "--engine", "echo", "--broker", url, "--data", folder / name]
    room = {
        "EDGEFLEET_WORKER_SLOTS": str(SLOTS),
        "EDGEFLEET_WORKER_PREFETCH": str(PREFETCH),
    }
    log = folder / f"{name}.log"
    with process(module("edge_worker", *words), log=log, environ=room) as one:
        yield one


async def ready(url: str, workers: list[str]) -> None:
    """Wait until the dispatcher and the workers say that they are online."""
    wanted = {TOPICS.name(topics.DISPATCHER)}
    wanted |= {TOPICS.name(topics.PRESENCE, name) for name in workers}
    session = Session(client_id="bench-ready", subscriptions=tuple(wanted))
    async with MqttBus(BrokerSettings(url=url), session) as bus, asyncio.timeout(60):
        while wanted:
            for event in await bus.receive():
                if isinstance(event, Delivery) and b'"online"' in event.payload:
                    wanted.discard(event.topic)
