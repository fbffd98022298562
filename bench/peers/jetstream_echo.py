"""A peer of `bench/dispatch.py`: jobs over NATS JetStream, written by hand with nats-py.

Two streams in files: jobs, each gone when its worker acknowledges it, and results, each gone when
the producer does. The worker takes all jobs that are there, stores their results, and acknowledges
the jobs then. Nothing is decided: no worker is picked, no lease, no retry of ours. Consumers are
pushed to: nats-py's `fetch` stalls now and then until its timeout. `jetstream_echo.py worker` is
the worker, without the word it is the producer; the server's URL comes from `BENCH_NATS_URL`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import nats
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from bench.peers.producer import Played, serve_async

_URL = os.environ.get("BENCH_NATS_URL", "nats://127.0.0.1:4222")
_WAIT_S = 60.0


async def connect() -> JetStreamContext:
    """Connect, and make the streams if they are not there."""
    client = await nats.connect(_URL)
    jetstream = client.jetstream(timeout=_WAIT_S)
    for name in ("jobs", "results"):
        stream = StreamConfig(
            name=name,
            subjects=[f"{name}.>"],
            storage=StorageType.FILE,
            retention=RetentionPolicy.WORK_QUEUE,
        )
        await jetstream.add_stream(stream)
    return jetstream


class Arrivals:
    """What a durable consumer is given."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Msg] = asyncio.Queue()

    async def open(self, jetstream: JetStreamContext, name: str) -> None:
        """Subscribe to a stream."""
        await jetstream.subscribe(
            f"{name}.>",
            durable=name,
            cb=self._waiting.put,
            manual_ack=True,
            config=ConsumerConfig(max_ack_pending=10_000),
        )

    async def take(self) -> list[Msg]:
        """Wait for at least one message and return all there are."""
        async with asyncio.timeout(_WAIT_S):
            taken = [await self._waiting.get()]
        while not self._waiting.empty():
            taken.append(self._waiting.get_nowait())
        return taken


async def work() -> None:
    """Echo jobs until the process ends."""
    jetstream, jobs = await connect(), Arrivals()
    await jobs.open(jetstream, "jobs")
    while True:
        try:
            taken = await jobs.take()
        except TimeoutError:
            continue
        answers = [
            jetstream.publish(f"results.{job.subject.removeprefix('jobs.')}", job.data)
            for job in taken
        ]
        await asyncio.gather(*answers)
        for job in taken:
            await job.ack()


class Producer:
    """Publishes jobs and takes their results."""

    def __init__(self, jetstream: JetStreamContext, results: Arrivals) -> None:
        self._jetstream = jetstream
        self._results = results
        self._started: dict[str, float] = {}
        self._sending: set[asyncio.Task[object]] = set()

    async def play(self, seconds: float, window: int, text: str) -> Played:
        """Keep `window` jobs in flight for so long, then wait for the last ones."""
        run_id, data = uuid.uuid4().hex[:12], text.encode()
        latencies: list[float] = []
        sent, begun = 0, time.perf_counter()
        while True:
            while len(self._started) < window and time.perf_counter() - begun < seconds:
                name = f"{run_id}-{sent}"
                self._started[name] = time.perf_counter()
                self._send(name, data)
                sent += 1
            if not self._started:
                break
            latencies += await self._take()
        if self._sending:
            await asyncio.gather(*self._sending)
        return time.perf_counter() - begun, latencies

    def _send(self, name: str, data: bytes) -> None:
        task = asyncio.ensure_future(self._jetstream.publish(f"jobs.{name}", data))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _take(self) -> list[float]:
        taken = await self._results.take()
        took, now = [], time.perf_counter()
        for result in taken:
            await result.ack()
            begun = self._started.pop(result.subject.removeprefix("results."), None)
            if begun is not None:
                took.append(now - begun)
        return took


async def start() -> Callable[[float, int, str], Awaitable[Played]]:
    """Return what plays a request."""
    jetstream, results = await connect(), Arrivals()
    await results.open(jetstream, "results")
    return Producer(jetstream, results).play


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(work())
    else:
        serve_async(start)
