"""What a scrape of `/metrics` takes while the dispatcher works, and what it costs the jobs.

Ours alone: broker, dispatcher and echo worker are processes of their own. Prometheus' part is
played ten times a second, far more often than it looks in truth, so that there are enough looks for
a quantile. In each round a device keeps jobs in flight and somebody looks; then nobody looks at the
same work; then somebody looks at a fleet at rest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.own_fleet import OwnFleet, own_fleet
from bench.processes import free_port
from bench.report import Aim, report
from bench.sides import Run
from fleet_cli.broker import BrokerKind
from fleet_protocol.log import set_up_logging

ROUNDS = 3
EVERY_S = 0.1
WINDOW = 256
WARM_S = 1.0
WITHIN_S = 10.0


class Scraper:
    """Looks at `/metrics` again and again, from a thread of its own.

    Attributes:
        took_s: What each look took, from the request to the last byte.
        sizes_bytes: Of what was told.
    """

    def __init__(self, url: str) -> None:
        self.took_s: list[float] = []
        self.sizes_bytes: list[int] = []
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            begun = time.perf_counter()
            with urllib.request.urlopen(self._url, timeout=WITHIN_S) as reply:  # noqa: S310 - loopback
                size = len(reply.read())
            self.took_s.append(time.perf_counter() - begun)
            self.sizes_bytes.append(size)


def loaded(fleet: OwnFleet, url: str, seconds: float) -> tuple[Run, Scraper]:
    """Let the fleet work while somebody looks."""
    with Scraper(url) as scraper:
        run = fleet.run(seconds=seconds, window=WINDOW)
    return run, scraper


def idle(url: str, seconds: float) -> Scraper:
    """Look while nothing happens."""
    with Scraper(url) as scraper:
        time.sleep(seconds)
    return scraper


def quantile_ms(took_s: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    ordered = sorted(took_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


def main() -> None:
    """Run all rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    set_up_logging(level="warning")
    seconds = 2.0 if options.quick else 8.0
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    environ = {"EDGEFLEET_DISPATCHER_GATEWAY__PORT": str(port)}
    under_load: list[float] = []
    at_rest: list[float] = []
    rates, plain_rates, sizes_bytes = [], [], [0]
    with (
        tempfile.TemporaryDirectory() as at,
        own_fleet(Path(at) / "fleet", BrokerKind.MOSQUITTO, environ=environ) as fleet,
    ):
        fleet.run(seconds=WARM_S, window=32)
        for number in range(ROUNDS):
            run, scraper = loaded(fleet, url, seconds)
            under_load += scraper.took_s
            sizes_bytes += scraper.sizes_bytes
            rates.append(run.jobs_per_s)
            plain_rates.append(fleet.run(seconds=seconds, window=WINDOW).jobs_per_s)
            at_rest += idle(url, seconds / 2).took_s
            print(
                f"round {number + 1}: {run.jobs_per_s:.0f} jobs/s, {plain_rates[-1]:.0f} without, "
                f"a look {quantile_ms(scraper.took_s, 0.5):.1f} ms",
                file=sys.stderr,
            )
        fleet.check()
    p99_ms = quantile_ms(under_load, 0.99)
    report(
        "scrape",
        ours={
            "p50_ms": quantile_ms(under_load, 0.5),
            "p99_ms": p99_ms,
            "most_ms": max(under_load) * 1e3,
            "at_rest_p50_ms": quantile_ms(at_rest, 0.5),
            "looks": float(len(under_load)),
            "size_kb": max(sizes_bytes) / 1e3,
            "jobs_per_s": statistics.median(rates),
            "jobs_per_s_without": statistics.median(plain_rates),
        },
        peers={},
        ratios={},
        aims={"p99_ms": Aim(p99_ms, at_most=50.0)},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
