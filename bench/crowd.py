"""Many boards on one broker and the dispatcher they answer to: what the large benchmarks share.

The boards are simulated (`bench/swarm.py`), some thousand in a process; their connections are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.own_fleet import PROMPT, TOPICS, Device, device_session, dispatcher_process
from bench.processes import ROOT
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import Delivery, Session
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

SWARMS = 4
SPARE_FILES = 500
COME_WITHIN_S = 300.0
SUBMIT_EVERY_S = 0.01
WAITING_MOST_S = 10
_LINE_BYTES = 2**26


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
    """A device that submits at an even rate until it is told to stop.

    Attributes:
        device: Knows what was not answered.
        latencies_s: From submission to result, of every job so far.
    """

    def __init__(self, device: Device, rate_per_s: int) -> None:
        self.device = device
        self.latencies_s: list[float] = []
        self._rate_per_s = rate_per_s
        self._is_over = False

    async def submit(self) -> None:
        """Submit."""
        begun, sent = time.monotonic(), 0
        while not self._is_over:
            now = time.monotonic()
            due = int((now - begun) * self._rate_per_s) - sent
            # A machine that is too busy gets fewer jobs, and no backlog.
            for _ in range(min(due, WAITING_MOST_S * self._rate_per_s - self.device.waiting)):
                prompt = f"{time.monotonic():.6f} {PROMPT}"
                submit = m.JobSubmit(prompt=prompt, cache=m.Caching.OFF)
                self.device.submit(codec.encode(submit))
            sent += due
            await asyncio.sleep(SUBMIT_EVERY_S)

    async def collect(self) -> None:
        """Take results until all are here."""
        while not self._is_over or self.device.waiting:
            self.latencies_s += await self.device.collect()

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


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Boards that came, and who counted them.

    Attributes:
        boards: The processes that they are in.
        dispatcher: The first one.
        dispatchers: Ends every dispatcher that was started.
        come_s: From the dispatcher's start until it counted all boards.
    """

    url: str
    folder: Path
    environ: Mapping[str, str] | None
    boards: list[SwarmProcess]
    watcher: Watcher
    dispatcher: psutil.Process
    dispatchers: contextlib.ExitStack
    come_s: float

    def start_dispatcher(self) -> psutil.Process:
        """Start another one on the data of the first, which is gone."""
        again = dispatcher_process(self.url, self.folder, self.environ)
        return self.dispatchers.enter_context(again)


@contextlib.asynccontextmanager
async def crowd(
    url: str, folder: Path, boards: int, *, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Crowd]:
    """Run a dispatcher and so many boards until the block ends; yield when it counts them all.

    Args:
        url: The broker's.
        folder: For what the dispatcher writes.
        boards: How many.
        environ: The dispatcher's settings, where they are not its defaults.
    """
    watcher = Watcher()
    watching = asyncio.create_task(watcher.run(url), name="watch")
    try:
        with contextlib.ExitStack() as dispatchers:
            begun = time.monotonic()
            first = dispatchers.enter_context(dispatcher_process(url, folder, environ))
            print(f"{boards} boards come", file=sys.stderr)
            async with swarms(url, boards) as running:
                await watcher.until(online=boards)
                yield Crowd(
                    url=url,
                    folder=folder,
                    environ=environ,
                    boards=running,
                    watcher=watcher,
                    dispatcher=first,
                    dispatchers=dispatchers,
                    come_s=time.monotonic() - begun,
                )
    finally:
        watching.cancel()


@contextlib.asynccontextmanager
async def under_load(url: str, jobs_per_s: int) -> AsyncIterator[Load]:
    """Submit at an even rate until the block ends; then wait for the last answers."""
    async with MqttBus(BrokerSettings(url=url), device_session()) as bus:
        load = Load(Device(bus), jobs_per_s)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.submit(), name="submit")
            tasks.create_task(load.collect(), name="collect")
            yield load
            load.stop()
            print(f"{load.device.waiting} jobs are still to be answered", file=sys.stderr)
