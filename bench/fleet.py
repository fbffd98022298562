"""Ten thousand boards on one broker: what they cost, and how soon the dispatcher knows of changes.

The boards are simulated (`bench/swarm.py`), their MQTT connections are not: every one has its own
to a real Mosquitto, says its state every five seconds and answers what it is assigned. A device
submits 500 jobs a second for two minutes. Under that load boards lose power while they hold jobs,
and then the dispatcher does (kill -9) and is started again. Every job must be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.own_fleet import PROMPT, TOPICS, Device, device_session, dispatcher_process
from bench.processes import ROOT, cpu_s, peak_mb
from bench.report import Aim, report
from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import Delivery, Session
from fleet_protocol.log import set_up_logging
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

SWARMS = 4
SPARE_FILES = 500
COME_WITHIN_S = 300.0
KNOW_WITHIN_S = 60.0
SUBMIT_EVERY_S = 0.01
DEATHS = 10
WAITING_MOST_S = 10
AGAIN_WITHIN_S = 3.0
_LINE_BYTES = 2**26


@dataclass(frozen=True)
class Plan:
    """How large, how long."""

    boards: int
    jobs_per_s: int
    seconds: float


WHOLE = Plan(boards=10_000, jobs_per_s=500, seconds=120.0)
QUICK = Plan(boards=2_000, jobs_per_s=300, seconds=15.0)


class SwarmProcess:
    """Many boards in one process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, op: str, **more: object) -> dict[str, Any]:
        """Give an order and return the answer."""
        if self._process.stdin is None:
            raise AssertionError("it was started with pipes")
        self._process.stdin.write(json.dumps({"op": op, **more}).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Wait for the next line."""
        if self._process.stdout is None:
            raise AssertionError("it was started with pipes")
        async with asyncio.timeout(COME_WITHIN_S):
            line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("a swarm of boards ended; its last words are above")
        told: dict[str, Any] = json.loads(line)
        return told


class Watcher:
    """Reads the dispatcher's overview, which comes once a second, and what is said of boards."""

    def __init__(self) -> None:
        self.workers: dict[str, int] = {}
        self.gone_at: dict[str, float] = {}
        self._news = asyncio.Event()

    async def run(self, url: str) -> None:
        """Listen until cancelled."""
        presence = TOPICS.filter(topics.PRESENCE)
        session = Session(
            client_id="bench-watch", subscriptions=(TOPICS.name(topics.SUMMARY), presence)
        )
        async with MqttBus(BrokerSettings(url=url), session) as bus:
            while True:
                events = await bus.receive()
                for event in events:
                    if isinstance(event, Delivery):
                        self._take(event)
                bus.acknowledge([event for event in events if isinstance(event, Delivery)])

    def _take(self, delivery: Delivery) -> None:
        if delivery.topic.endswith("/presence"):
            if b'"offline"' in delivery.payload:
                name = delivery.topic.split("/")[-2]
                self.gone_at.setdefault(name, time.monotonic())
            return
        self.workers = codec.decode_as(m.FleetSummary, delivery.payload).workers
        if not delivery.retain:
            self._news.set()

    async def until(self, *, online: int) -> float:
        """Wait until the dispatcher counts so many as online, no more and no less; return when."""
        try:
            async with asyncio.timeout(COME_WITHIN_S):
                while True:
                    self._news.clear()
                    await self._news.wait()
                    if self.workers.get("online", 0) == online:
                        return time.monotonic()
        except TimeoutError:
            raise SystemExit(
                f"not {online} boards are online after {COME_WITHIN_S:.0f} s but {self.workers}: "
                "the machine is too busy, or something is wrong"
            ) from None


class Load:
    """A device that submits at an even rate until it is told to stop."""

    def __init__(self, device: Device, rate_per_s: int) -> None:
        self.latencies_s: list[float] = []
        self._device = device
        self._rate_per_s = rate_per_s
        self._is_over = False

    async def submit(self) -> None:
        """Submit."""
        begun, sent = time.monotonic(), 0
        while not self._is_over:
            now = time.monotonic()
            due = int((now - begun) * self._rate_per_s) - sent
            # A machine that is too busy gets fewer jobs, and no backlog.
            for _ in range(min(due, WAITING_MOST_S * self._rate_per_s - self._device.waiting)):
                prompt = f"{time.monotonic():.6f} {PROMPT}"
                submit = m.JobSubmit(prompt=prompt, cache=m.Caching.OFF)
                self._device.submit(codec.encode(submit))
            sent += due
            await asyncio.sleep(SUBMIT_EVERY_S)

    async def collect(self) -> None:
        """Take results until all are here."""
        while not self._is_over or self._device.waiting:
            self.latencies_s += await self._device.collect()

    def stop(self) -> None:
        """Submit no more."""
        self._is_over = True


def allow_files(boards: int) -> None:
    """Let this process and those that it starts open so many files.

    Raises:
        SystemExit: The system does not allow it.
    """
    wanted = boards + SPARE_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < wanted:
        raise SystemExit(
            f"{wanted} open files are needed and {most} allowed: raise it with "
            f"`ulimit -Hn {wanted}` as root, or name fewer boards with --boards."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextlib.asynccontextmanager
async def swarms(url: str, boards: int) -> AsyncIterator[list[SwarmProcess]]:
    """Run all boards until the block ends; yield when every one is connected."""
    share = -(-boards // SWARMS)
    children: list[asyncio.subprocess.Process] = []
    try:
        for first in range(0, boards, share):
            words = ["--url", url, "--first", first, "--count", min(share, boards - first)]
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.swarm", *map(str, words)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                limit=_LINE_BYTES,
            )
            children.append(child)
        running = [SwarmProcess(child) for child in children]
        for one in running:
            await one.answer()
        yield running
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
            await child.wait()


class Trial:
    """One run; fills `figures`."""

    def __init__(self, plan: Plan, broker: BrokerProcess, folder: Path) -> None:
        self.figures: dict[str, float] = {}
        self._plan = plan
        self._broker = broker
        self._folder = folder
        self._online = plan.boards
        self._watcher = Watcher()

    async def run(self) -> None:
        """Let the boards come, load them, take power away."""
        watching = asyncio.create_task(self._watcher.run(self._broker.url), name="watch")
        with contextlib.ExitStack() as dispatchers:
            first = dispatchers.enter_context(self._dispatcher())
            begun = time.monotonic()
            _say(f"{self._plan.boards} boards come")
            async with swarms(self._broker.url, self._plan.boards) as boards:
                await self._watcher.until(online=self._online)
                self.figures["come_s"] = time.monotonic() - begun
                await self._under_load(boards, first, dispatchers)
        watching.cancel()

    def _dispatcher(self) -> contextlib.AbstractContextManager[psutil.Process]:
        return dispatcher_process(self._broker.url, self._folder)

    async def _under_load(
        self,
        boards: list[SwarmProcess],
        dispatcher: psutil.Process,
        dispatchers: contextlib.ExitStack,
    ) -> None:
        await self._idle(dispatcher)
        async with MqttBus(BrokerSettings(url=self._broker.url), device_session()) as bus:
            device = Device(bus)
            load = Load(device, self._plan.jobs_per_s)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.submit(), name="submit")
                tasks.create_task(load.collect(), name="collect")
                await self._steady(boards, dispatcher, load)
                await self._deaths(boards)
                await self._restart(boards, dispatcher, dispatchers)
                load.stop()
                _say(f"{device.waiting} jobs are still to be answered")
        self.figures["without_answer"] = float(sum(device.failed.values()))

    async def _idle(self, dispatcher: psutil.Process) -> None:
        """Without jobs: what heartbeats alone cost."""
        span_s = self._plan.seconds / 12
        _say(f"all are there; heartbeats alone for {span_s:.0f} s")
        before = cpu_s(dispatcher)
        await asyncio.sleep(span_s)
        self.figures["idle_cpu_pct"] = (cpu_s(dispatcher) - before) / span_s * 100

    async def _steady(
        self, boards: list[SwarmProcess], dispatcher: psutil.Process, load: Load
    ) -> None:
        """Nothing but work."""
        broker = psutil.Process(self._broker.pid)
        _say(f"{self._plan.jobs_per_s} jobs/s for {self._plan.seconds:.0f} s")
        await asyncio.sleep(2)
        for one in boards:
            await one.ask("report")
        begun, jobs = time.monotonic(), len(load.latencies_s)
        before, broker_before = cpu_s(dispatcher), cpu_s(broker)
        await asyncio.sleep(self._plan.seconds)
        wall_s = time.monotonic() - begun
        own_s = cpu_s(dispatcher) - before
        done = load.latencies_s[jobs:]
        delays = [x for one in boards for x in (await one.ask("report"))["delays_s"]]
        self.figures |= {
            "jobs_per_s": len(done) / wall_s,
            "cpu_pct": own_s / wall_s * 100,
            "broker_cpu_pct": (cpu_s(broker) - broker_before) / wall_s * 100,
            "rss_mb": peak_mb(dispatcher),
            "assigned_p50_ms": _quantile_ms(delays, 0.5),
            "assigned_p99_ms": _quantile_ms(delays, 0.99),
            "result_p50_ms": _quantile_ms(done, 0.5),
            "result_p99_ms": _quantile_ms(done, 0.99),
        }

    async def _deaths(self, boards: list[SwarmProcess]) -> None:
        """Boards that hold jobs lose power, one after the other."""
        _say(f"{DEATHS} boards lose power")
        told, counted, died_at = [], [], dict[str, float]()
        for number in range(DEATHS):
            killed = await self._killed(boards, number)
            self._online -= 1
            counted_at = await self._watcher.until(online=self._online)
            told.append(self._watcher.gone_at[killed["board"]] - killed["at"])
            counted.append(counted_at - killed["at"])
            died_at |= dict.fromkeys(killed["jobs"], killed["at"])
        await asyncio.sleep(AGAIN_WITHIN_S)
        seen = [pair for one in boards for pair in (await one.ask("report"))["again"]]
        again = {job: at - died_at[job] for job, at in reversed(seen) if job in died_at}
        self.figures |= {
            "death_told_ms": statistics.median(told) * 1e3,
            "death_counted_s": statistics.median(counted),
            "death_counted_most_s": max(counted),
            "death_job_given_again_s": statistics.median(again.values()),
            "death_job_given_again_most_s": max(again.values()),
            "death_jobs": float(len(died_at)),
            "death_jobs_given_again": float(len(again)),
        }

    async def _killed(self, boards: list[SwarmProcess], number: int) -> dict[str, Any]:
        """Kill a board that holds a job, wherever the work is now."""
        first = number % len(boards)
        async with asyncio.timeout(KNOW_WITHIN_S):
            while True:
                for one in (*boards[first:], *boards[:first]):
                    killed = await one.ask("kill")
                    if killed["board"] is not None:
                        return killed
                await asyncio.sleep(0.1)

    async def _restart(
        self,
        boards: list[SwarmProcess],
        dispatcher: psutil.Process,
        dispatchers: contextlib.ExitStack,
    ) -> None:
        """The dispatcher loses power and comes back while jobs go on arriving."""
        _say("the dispatcher loses power")
        dispatcher.kill()
        dispatcher.wait(10)
        for one in boards:
            await one.ask("report")
        begun = time.monotonic()
        second = dispatchers.enter_context(self._dispatcher())
        known_at = await self._watcher.until(online=self._online)
        await asyncio.sleep(1)
        firsts = [(await one.ask("report"))["first_at"] for one in boards]
        self.figures |= {
            "restart_knows_all_s": known_at - begun,
            "restart_assigns_s": min(at for at in firsts if at is not None) - begun,
            "restart_rss_mb": peak_mb(second),
        }


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def _quantile_ms(spans_s: list[float], share: float) -> float:
    ordered = sorted(spans_s)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


def run_trial(plan: Plan) -> dict[str, float]:
    """Run it all and return the figures."""
    with (
        tempfile.TemporaryDirectory() as at,
        BrokerProcess(BrokerKind.MOSQUITTO, Path(at) / "broker") as broker,
    ):
        trial = Trial(plan, broker, Path(at))
        asyncio.run(trial.run())
    return trial.figures


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 boards, under a minute")
    parser.add_argument("--boards", type=int, help="another number of boards")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    plan = QUICK if options.quick else WHOLE
    if options.boards:
        plan = Plan(options.boards, plan.jobs_per_s, plan.seconds)
    allow_files(plan.boards)
    set_up_logging(level="warning")
    figures = {"boards": float(plan.boards)} | run_trial(plan)
    report(
        "fleet",
        ours=figures,
        peers={},
        ratios={},
        aims={
            "jobs_per_s": Aim(figures["jobs_per_s"], at_least=0.98 * plan.jobs_per_s),
            "rss_mb": Aim(figures["rss_mb"], at_most=500),
            "restart_knows_all_s": Aim(figures["restart_knows_all_s"], at_most=10),
            "without_answer": Aim(figures["without_answer"], at_most=0),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
