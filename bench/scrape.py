"""What a scrape of `/metrics` takes while the dispatcher works, and what it costs the jobs.

Ours alone: broker, dispatcher and echo worker are processes of their own. Prometheus' part is
played ten times a second, far more often than it looks in truth, so that there are enough looks for
a quantile. In each round a device keeps jobs in flight and somebody looks; then nobody looks at the
same work; then somebody looks at a fleet at rest.

With `--boards 10000` so many more boards are told of, each by itself (`gateway.worker_metrics`).
They drain, so they get no jobs. Whoever asks `/healthz` every few milliseconds meanwhile, at rest,
waits for as long as the dispatcher's loop was held: the longest of each second counts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.own_fleet import TOPICS, OwnFleet, own_fleet
from bench.processes import free_port
from bench.report import Aim, report
from bench.sides import Run
from fleet_cli.broker import BrokerKind
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import Confirmed, Publication, Session
from fleet_protocol.log import set_up_logging
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

ROUNDS = 3
EVERY_S = 0.1
PING_EVERY_S = 0.004
LOOK_AT_REST_EVERY_S = 1.0
SILENCE_MS = 86_400_000
BATCH = 200
WINDOW = 256
WARM_S = 1.0
WITHIN_S = 10.0
KNOWN_WITHIN_S = 300.0


class Scraper:
    """Looks at a path again and again, from a thread of its own.

    Attributes:
        at_s: When each look began.
        took_s: What it took, from the request to the last byte.
        sizes_bytes: Of what was told.
    """

    def __init__(self, url: str, *, every_s: float = EVERY_S) -> None:
        self.at_s: list[float] = []
        self.took_s: list[float] = []
        self.sizes_bytes: list[int] = []
        self._request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})  # noqa: S310 - loopback
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            begun = time.perf_counter()
            with urllib.request.urlopen(self._request, timeout=WITHIN_S) as reply:  # noqa: S310 - loopback
                size = len(reply.read())
            self.at_s.append(begun)
            self.took_s.append(time.perf_counter() - begun)
            self.sizes_bytes.append(size)


def loaded(fleet: OwnFleet, url: str, seconds: float) -> tuple[Run, Scraper]:
    """Let the fleet work while somebody looks."""
    with Scraper(url) as scraper:
        run = fleet.run(seconds=seconds, window=WINDOW)
    return run, scraper


def idle(url: str, seconds: float, *, every_s: float = EVERY_S) -> Scraper:
    """Look while nothing happens."""
    with Scraper(url, every_s=every_s) as scraper:
        time.sleep(seconds)
    return scraper


def held(url: str, seconds: float, *, looked_at: bool) -> list[float]:
    """Return each second's longest ping at rest; somebody looks each second, or nobody does."""
    with Scraper(url.replace("/metrics", "/healthz"), every_s=PING_EVERY_S) as pings:
        if looked_at:
            idle(url, seconds, every_s=LOOK_AT_REST_EVERY_S)
        else:
            time.sleep(seconds)
    longest: dict[int, float] = {}
    for at_s, took_s in zip(pings.at_s, pings.took_s, strict=True):
        second = int(at_s - pings.at_s[0])
        longest[second] = max(took_s, longest.get(second, 0.0))
    return list(longest.values())


async def announce(broker: str, boards: int) -> None:
    """Say of so many boards that they are there, and how they are; they take no jobs."""
    session = Session(client_id="bench-boards")
    async with MqttBus(BrokerSettings(url=broker), session) as bus:
        for first in range(0, boards, BATCH):
            numbers = range(first, min(boards, first + BATCH))
            for number in numbers:
                for publication in said_by(number):
                    bus.publish(publication)
            unconfirmed = set(numbers)
            while unconfirmed:
                events = await bus.receive()
                unconfirmed -= {event.token for event in events if isinstance(event, Confirmed)}


def said_by(number: int) -> Iterator[Publication]:
    """Yield what a board says of itself; the last one is confirmed by its number."""
    state = m.WorkerState(
        ts=int(time.time() * 1_000),
        seq=0,
        status=m.Activity.IDLE,
        cpu_pct=number % 1_000 / 10,
        mem_pct=40.0,
        inflight=0,
        temp_c=40 + number % 300 / 10,
        throttled=False,
        tok_s=number % 877 / 10,
    )
    model = m.ModelInfo(name="echo", version="1", context_tokens=4_096)
    said: tuple[tuple[topics.Channel, m.Message], ...] = (
        (topics.INFO, m.WorkerInfo(boot="b", slots=2, models=(model,))),
        (topics.PRESENCE, m.Presence(status=m.PresenceStatus.DRAINING, boot="b")),
        (topics.STATE, state),
    )
    for channel, message in said:
        topic = TOPICS.name(channel, f"board-{number:05}")
        token = number if channel is topics.STATE else None
        yield Publication(topic=topic, payload=codec.encode(message), token=token)


def until_known(url: str, boards: int) -> None:
    """Wait until the dispatcher tells of all of them."""
    wanted = f'edgefleet_workers{{status="draining"}} {boards}\n'.encode()
    ends_at_s = time.monotonic() + KNOWN_WITHIN_S
    while True:
        with urllib.request.urlopen(url, timeout=WITHIN_S) as reply:  # noqa: S310 - loopback
            if wanted in reply.read():
                return
        if time.monotonic() > ends_at_s:
            raise SystemExit("the dispatcher did not hear of all boards")
        time.sleep(EVERY_S)


def quantile_ms(took_s: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    ordered = sorted(took_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


def main() -> None:
    """Run all rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--boards", type=int, default=0, help="so many more, each told by itself")
    options = parser.parse_args()
    set_up_logging(level="warning")
    seconds = 2.0 if options.quick else 8.0
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    environ = {
        "EDGEFLEET_DISPATCHER_GATEWAY__PORT": str(port),
        "EDGEFLEET_DISPATCHER_GATEWAY__WORKER_METRICS": "true" if options.boards else "false",
        "EDGEFLEET_DISPATCHER_ENGINE__WORKER_SILENCE_MS": str(SILENCE_MS),
    }
    with (
        tempfile.TemporaryDirectory() as at,
        own_fleet(Path(at) / "fleet", BrokerKind.MOSQUITTO, environ=environ) as fleet,
    ):
        asyncio.run(announce(fleet.url, options.boards))
        if options.boards:
            until_known(url, options.boards)
        fleet.run(seconds=WARM_S, window=32)
        ours = measured(fleet, url, seconds)
        fleet.check()
    aims = {"p99_ms": Aim(ours["p99_ms"], at_most=50.0)}
    if options.boards:
        aims = {"held_ms": Aim(ours["held_ms"], at_most=50.0)}
    report("scrape", ours=ours, peers={}, ratios={}, aims=aims, as_json=options.json)


def measured(fleet: OwnFleet, url: str, seconds: float) -> dict[str, float]:
    """Look in rounds, and return the figures."""
    under_load: list[float] = []
    at_rest: list[float] = []
    held_s: list[float] = []
    unheld_s: list[float] = []
    rates, plain_rates, sizes_bytes = [], [], [0]
    for number in range(ROUNDS):
        run, scraper = loaded(fleet, url, seconds)
        under_load += scraper.took_s
        sizes_bytes += scraper.sizes_bytes
        rates.append(run.jobs_per_s)
        plain_rates.append(fleet.run(seconds=seconds, window=WINDOW).jobs_per_s)
        at_rest += idle(url, seconds / 2).took_s
        held_s += held(url, seconds, looked_at=True)
        unheld_s += held(url, seconds, looked_at=False)
        print(
            f"round {number + 1}: {run.jobs_per_s:.0f} jobs/s, {plain_rates[-1]:.0f} without, "
            f"a look {quantile_ms(scraper.took_s, 0.5):.1f} ms",
            file=sys.stderr,
        )
    return {
        "p50_ms": quantile_ms(under_load, 0.5),
        "p99_ms": quantile_ms(under_load, 0.99),
        "most_ms": max(under_load) * 1e3,
        "at_rest_p50_ms": quantile_ms(at_rest, 0.5),
        "held_ms": quantile_ms(held_s, 0.5),
        "held_most_ms": max(held_s) * 1e3,
        "held_by_others_ms": quantile_ms(unheld_s, 0.5),
        "held_by_others_most_ms": max(unheld_s) * 1e3,
        "looks": float(len(under_load)),
        "size_kb": max(sizes_bytes) / 1e3,
        "jobs_per_s": statistics.median(rates),
        "jobs_per_s_without": statistics.median(plain_rates),
    }


if __name__ == "__main__":
    main()
