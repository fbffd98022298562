"""An hour of steady work: do memory, open files and threads stay what they are?

A fleet of processes (Mosquitto, dispatcher, two echo workers) gets 200 jobs a second, each tenth of
which repeats an earlier question. Every ten seconds we look at what each process holds. What
counts is how it grows after the first ten minutes, in which caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.own_fleet import PROMPT, Device, OwnFleet, device_session, own_fleet
from bench.processes import cpu_s
from bench.report import Aim, report
from bench.sides import Run
from fleet_cli.broker import BrokerKind
from fleet_protocol import codec
from fleet_protocol.log import set_up_logging
from fleet_protocol.messages import JobSubmit
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

RATE_PER_S = 200
WORKERS = 2
REPEATED_SHARE = 0.1
LOOKS = 360
SUBMIT_EVERY_S = 0.02
# The whole is judged from the state after a sixth of it (ten minutes of an hour) on.
WARM_SHARE = 1 / 6
WINDOW_SHARE = 1 / 12
GROWTH_MOST = 0.05
# A machine that is too busy gets fewer jobs, not a backlog, for that would be memory in use.
WAITING_MOST = 1_000


@dataclass(frozen=True)
class Holding:
    """What a process holds at a moment; seconds since the start of the load."""

    at_s: float
    process: str
    rss_mb: float
    files: int
    threads: int


class Watch:
    """Looks at processes again and again."""

    def __init__(
        self,
        processes: Mapping[str, psutil.Process],
        *,
        every_s: float = 10.0,
        file: Path | None = None,
    ) -> None:
        """Watch processes; what is seen goes to a file at once, as CSV."""
        self.seen: list[Holding] = []
        self._processes = processes
        self._every_s = every_s
        self._file = file
        if file is not None:
            file.write_text(",".join(Holding.__annotations__) + "\n", encoding="utf-8")

    async def run(self, *, begun: float) -> None:
        """Look until cancelled."""
        while True:
            self.look(at_s=time.perf_counter() - begun)
            await asyncio.sleep(self._every_s)

    def look(self, *, at_s: float) -> None:
        """Take note of what all hold."""
        for name, one in self._processes.items():
            with one.oneshot():
                rss_mb = one.memory_info().rss / 1e6
                holding = Holding(at_s, name, rss_mb, one.num_fds(), one.num_threads())
            self.seen.append(holding)
            self._write(holding)

    def growth(self, name: str, *, whole_s: float) -> dict[str, float]:
        """Return what a process holds at the end over what it held when it was warm."""
        own = [one for one in self.seen if one.process == name]
        window_s, warm_s = WINDOW_SHARE * whole_s, WARM_SHARE * whole_s
        early = [one for one in own if warm_s <= one.at_s < warm_s + window_s]
        late = [one for one in own if one.at_s >= whole_s - window_s]
        return {
            "rss_mb": _median(late, "rss_mb"),
            "rss_growth_share": _median(late, "rss_mb") / _median(early, "rss_mb") - 1,
            "files_growth": _median(late, "files") - _median(early, "files"),
            "threads_growth": _median(late, "threads") - _median(early, "threads"),
        }

    def _write(self, one: Holding) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                size = f"{one.rss_mb:.2f},{one.files},{one.threads}"
                stream.write(f"{one.at_s:.1f},{one.process},{size}\n")


def _median(seen: Sequence[Holding], field: str) -> float:
    return float(statistics.median(getattr(one, field) for one in seen))


def questions(seed: int) -> Iterator[bytes]:
    """Yield submissions, some of which were there before."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    number = 0
    while True:
        number += 1
        asked = chance.randrange(number) if chance.random() < REPEATED_SHARE else number
        yield codec.encode(JobSubmit(prompt=f"{asked}: {PROMPT}"))


async def load(url: str, watch: Watch, *, seconds: float, rate_per_s: int) -> tuple[Run, Device]:
    """Submit at an even rate for so long and wait for all results."""
    async with MqttBus(BrokerSettings(url=url), device_session()) as bus:
        device, latencies = Device(bus), list[float]()
        begun = time.perf_counter()
        watching = asyncio.create_task(watch.run(begun=begun), name="watch")
        submitting = asyncio.create_task(
            submit(device, begun=begun, seconds=seconds, rate_per_s=rate_per_s), name="submit"
        )
        collecting = asyncio.create_task(gather(device, latencies), name="collect")
        try:
            await submitting
            collecting.cancel()
            await asyncio.wait({collecting})
            while device.waiting:
                latencies += await device.collect()
        finally:
            for task in (watching, submitting, collecting):
                task.cancel()
        return Run(wall_s=time.perf_counter() - begun, latencies_s=latencies), device


async def gather(device: Device, latencies: list[float]) -> None:
    """Take results until cancelled."""
    while True:
        latencies += await device.collect()


async def submit(device: Device, *, begun: float, seconds: float, rate_per_s: int) -> None:
    """Submit at an even rate."""
    asked, sent = questions(1), 0
    while (past_s := time.perf_counter() - begun) < seconds:
        due = int(past_s * rate_per_s) - sent
        for _ in range(min(due, WAITING_MOST - device.waiting)):
            device.submit(next(asked))
        sent += due
        await asyncio.sleep(SUBMIT_EVERY_S)


def processes(fleet: OwnFleet) -> dict[str, psutil.Process]:
    """Return what is watched."""
    return {"dispatcher": fleet.dispatcher} | {
        f"worker{number}": one for number, one in enumerate(fleet.workers)
    }


def main() -> None:
    """Run the fleet and print what it held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=RATE_PER_S, help="jobs a second")
    parser.add_argument("--quick", action="store_true", help="two minutes")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--samples", type=Path, help="write what was seen to this file (CSV)")
    options = parser.parse_args()
    set_up_logging(level="warning")
    seconds = 120.0 if options.quick else 60 * options.minutes
    with (
        tempfile.TemporaryDirectory() as at,
        own_fleet(Path(at), BrokerKind.MOSQUITTO, workers=WORKERS) as fleet,
    ):
        watch = Watch(processes(fleet), every_s=seconds / LOOKS, file=options.samples)
        before_s = cpu_s(fleet.dispatcher)
        run, device = asyncio.run(load(fleet.url, watch, seconds=seconds, rate_per_s=options.rate))
        cpu_us = (cpu_s(fleet.dispatcher) - before_s) / run.jobs * 1e6
    held = {name: watch.growth(name, whole_s=seconds) for name in processes(fleet)}
    figures = {
        "jobs": float(run.jobs),
        "jobs_per_s": run.jobs_per_s,
        "without_answer": float(sum(device.failed.values())),
        "p50_ms": run.quantile_ms(0.5),
        "p99_ms": run.quantile_ms(0.99),
        "cpu_us_per_job": cpu_us,
    } | {f"{name}_{figure}": value for name, seen in held.items() for figure, value in seen.items()}
    aims = {
        "jobs_per_s": Aim(run.jobs_per_s, at_least=0.98 * options.rate),
        "without_answer": Aim(figures["without_answer"], at_most=0),
    }
    for name in held:
        for what, most in (("rss_growth_share", GROWTH_MOST), ("files_growth", 0.0),
                           ("threads_growth", 0.0)):  # fmt: skip
            aims[f"{name}_{what}"] = Aim(figures[f"{name}_{what}"], at_most=most)
    report("soak", ours=figures, peers={}, ratios={}, aims=aims, as_json=options.json)


if __name__ == "__main__":
    main()
