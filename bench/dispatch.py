"""Durable jobs per second, end to end, beside Dramatiq on Redis in the same run.

Ours: this process is the device; broker, dispatcher and echo worker are processes of their own. The
dispatcher runs with its defaults: each job is on the disk (SQLite WAL, synchronous=FULL) before it
is acknowledged or assigned, and each result before it is told. The peer: this process enqueues to
Redis (appendonly, fsync every second, which is its usual durable setting), one worker process of
8 threads echoes, the result is awaited from Redis.

Both get the same prompts and the same number in flight, in alternating rounds; medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.processes import cpu_s, free_port, module, process
from bench.report import Aim, report
from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol import codec, topics
from fleet_protocol.bus import Delivery, Publication, Session
from fleet_protocol.messages import Caching, JobResult, JobStatus, JobSubmit
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

WINDOW = 256
SLOTS = 64
PREFETCH = 192
PROMPT = "is the reading of 21.5 C in hall 3 within the limits? " + "x" * 150
TOPICS = topics.Topics()


class Device:
    """Publishes submissions with a window in flight and times each result."""

    def __init__(self, bus: MqttBus) -> None:
        self._bus = bus

    async def run(self, jobs: int, window: int) -> list[float]:
        """Do `jobs` jobs, `window` at once; return each one's seconds from submit to result."""
        run_id = uuid.uuid4().hex[:12]
        payload = codec.encode(JobSubmit(prompt=PROMPT, cache=Caching.OFF))
        started: dict[str, float] = {}
        latencies: list[float] = []
        sent = 0
        while len(latencies) < jobs:
            while sent < jobs and len(started) < window:
                job = f"{run_id}-{sent}"
                topic = TOPICS.name(topics.SUBMIT, "bench", job)
                self._bus.publish(Publication(topic=topic, payload=payload))
                started[job] = time.perf_counter()
                sent += 1
            async with asyncio.timeout(60):
                latencies += self._collect(await self._bus.receive(), started)
        return latencies

    def _collect(self, events: list[object], started: dict[str, float]) -> list[float]:
        deliveries = [event for event in events if isinstance(event, Delivery)]
        now = time.perf_counter()
        done = []
        for delivery in deliveries:
            result = codec.decode_as(JobResult, delivery.payload)
            if result.status is not JobStatus.OK:
                raise RuntimeError(f"job {result.id}: {result.status} {result.code}")
            begun = started.pop(result.id, None)
            if begun is not None:
                done.append(now - begun)
        self._bus.acknowledge(deliveries)
        return done


class Ours:
    """The fleet under test."""

    def __init__(self, broker: BrokerProcess, folder: Path, dispatcher: psutil.Process) -> None:
        self._url = broker.url
        self._folder = folder
        self._dispatcher = dispatcher

    def run(self, jobs: int, window: int) -> tuple[float, list[float], float]:
        """Return jobs/s, latencies in seconds and the dispatcher's CPU microseconds a job."""
        return asyncio.run(self._run(jobs, window))

    async def _run(self, jobs: int, window: int) -> tuple[float, list[float], float]:
        session = Session(client_id="bench", subscriptions=(TOPICS.filter(topics.RESULT, "bench"),))
        async with MqttBus(BrokerSettings(url=self._url), session) as bus:
            cpu = cpu_s(self._dispatcher)
            begun = time.perf_counter()
            latencies = await Device(bus).run(jobs, window)
            wall = time.perf_counter() - begun
            return jobs / wall, latencies, (cpu_s(self._dispatcher) - cpu) / jobs * 1e6

    def stored(self) -> int:
        """Return how many finished jobs the dispatcher's database holds."""
        path = next(self._folder.glob("dispatcher/**/*.db"))
        with contextlib.closing(sqlite3.connect(path)) as db:
            return int(db.execute("select count(*) from jobs where status = 'ok'").fetchone()[0])


class Peer:
    """Dramatiq on Redis."""

    def __init__(self, worker: psutil.Process) -> None:
        from bench.peers import dramatiq_echo  # noqa: PLC0415 - reads its URL when imported

        self._echo = dramatiq_echo.echo
        self._backend = dramatiq_echo.backend
        self._worker = worker

    def run(self, jobs: int, window: int) -> tuple[float, list[float], float]:
        """Return jobs/s, latencies in seconds and the worker's CPU microseconds a job."""
        cpu = cpu_s(self._worker)
        waiting = []
        latencies = []
        begun = time.perf_counter()
        for _ in range(jobs):
            waiting.append((self._echo.send(PROMPT), time.perf_counter()))
            if len(waiting) >= window:
                latencies.append(self._wait(*waiting.pop(0)))
        latencies += [self._wait(*one) for one in waiting]
        wall = time.perf_counter() - begun
        return jobs / wall, latencies, (cpu_s(self._worker) - cpu) / jobs * 1e6

    def _wait(self, message: object, begun: float) -> float:
        message.get_result(backend=self._backend, block=True, timeout=60_000)
        return time.perf_counter() - begun


@contextlib.contextmanager
def our_fleet(folder: Path, kind: BrokerKind) -> Iterator[Ours]:
    """Broker, dispatcher and echo worker, ready."""
    with BrokerProcess(kind, folder / "broker") as broker, contextlib.ExitStack() as stack:
        dispatcher = stack.enter_context(
            process(
                module(
                    "cloud_dispatcher",
                    "run",
                    "--broker",
                    broker.url,
                    "--data",
                    folder / "dispatcher",
                ),
                log=folder / "dispatcher.log",
            )
        )
        stack.enter_context(
            process(
                module(
                    "edge_worker", "run", "--id", "echo", "--engine", "echo",
                    "--broker", broker.url, "--data", folder / "worker",
                ),
                log=folder / "worker.log",
                environ={
                    "EDGEFLEET_WORKER_SLOTS": str(SLOTS),
                    "EDGEFLEET_WORKER_PREFETCH": str(PREFETCH),
                },
            )
        )  # fmt: skip
        asyncio.run(ready(broker.url))
        yield Ours(broker, folder, dispatcher)


async def ready(url: str) -> None:
    """Wait until the dispatcher and the worker say that they are online."""
    wanted = {TOPICS.name(topics.DISPATCHER), TOPICS.name(topics.PRESENCE, "echo")}
    session = Session(client_id="bench-ready", subscriptions=tuple(wanted))
    async with MqttBus(BrokerSettings(url=url), session) as bus, asyncio.timeout(60):
        while wanted:
            for event in await bus.receive():
                if isinstance(event, Delivery) and b'"online"' in event.payload:
                    wanted.discard(event.topic)


@contextlib.contextmanager
def dramatiq_fleet(folder: Path) -> Iterator[Peer]:
    """Redis and a Dramatiq worker, ready."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    os.environ["BENCH_REDIS_URL"] = url
    server = shutil.which("redis-server") or "redis-server"
    words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with (
        process([server, *words, "--appendonly", "yes"], log=folder / "redis.log"),
        process(
            module("dramatiq", "bench.peers.dramatiq_echo", "--processes", "1", "--threads", "8"),
            log=folder / "dramatiq.log",
        ) as worker,
    ):
        yield Peer(worker)


Runner = Callable[[int, int], tuple[float, list[float], float]]


def quantile_ms(latencies: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * share))] * 1e3


def figures(name: str, runner: Runner, jobs: int, singles: int) -> dict[str, float]:
    """One round of one side: throughput with a full window, then one job at a time."""
    jobs_per_s, _, cpu_us = runner(jobs, WINDOW)
    _, alone, _ = runner(singles, 1)
    print(f"{name}: {jobs_per_s:.0f} jobs/s, {cpu_us:.0f} us CPU a job", file=sys.stderr)
    return {
        "jobs_per_s": jobs_per_s,
        "p50_ms": quantile_ms(alone, 0.50),
        "p99_ms": quantile_ms(alone, 0.99),
        "cpu_us_per_job": cpu_us,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def main() -> None:
    """Run both sides in turn and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--broker-kind", type=BrokerKind, default=BrokerKind.MOSQUITTO)
    options = parser.parse_args()
    rounds = 3
    jobs, singles = (6_000, 300) if options.quick else (20_000, 1_000)
    peer_jobs, peer_singles = (1_000, 100) if options.quick else (3_000, 300)
    with (
        tempfile.TemporaryDirectory() as ours_at,
        tempfile.TemporaryDirectory() as peer_at,
        our_fleet(Path(ours_at), options.broker_kind) as ours,
        dramatiq_fleet(Path(peer_at)) as peer,
    ):
        ours.run(200, 32)
        peer.run(50, 32)
        ours_rounds, peer_rounds, ratios = [], [], []
        for _ in range(rounds):
            ours_rounds.append(figures("ours", ours.run, jobs, singles))
            peer_rounds.append(figures("dramatiq", peer.run, peer_jobs, peer_singles))
            ratios.append(ours_rounds[-1]["jobs_per_s"] / peer_rounds[-1]["jobs_per_s"])
        expected = 200 + rounds * (jobs + singles)
        if ours.stored() != expected:
            raise SystemExit(f"{ours.stored()} jobs on the disk, {expected} were answered")
    mine, theirs = medians(ours_rounds), medians(peer_rounds)
    ratio = statistics.median(ratios)
    report(
        "dispatch",
        ours=mine,
        peers={"dramatiq_redis": theirs},
        ratios={"dramatiq_redis": ratio},
        aims={
            "jobs_per_s": Aim(mine["jobs_per_s"], at_least=4_000),
            "p50_ms": Aim(mine["p50_ms"], at_most=3),
            "dramatiq_redis": Aim(ratio, at_least=6),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
