"""Ten thousand boards on one broker: what they cost, and how soon the dispatcher knows of changes.

The boards are simulated (`bench/swarm.py`), their MQTT connections are not: every one has its own
to a real Mosquitto, says its state every five seconds and answers what it is assigned. A device
submits 500 jobs a second for two minutes. Under that load boards lose power while they hold jobs,
and then the dispatcher does (kill -9) and is started again. Every job must be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.crowd import Crowd, Load, SwarmProcess, allow_files, crowd, under_load
from bench.processes import cpu_s, peak_mb
from bench.report import Aim, report
from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol.log import set_up_logging

KNOW_WITHIN_S = 60.0
DEATHS = 10
AGAIN_WITHIN_S = 3.0


@dataclass(frozen=True)
class Plan:
    """How large, how long."""

    boards: int
    jobs_per_s: int
    seconds: float


WHOLE = Plan(boards=10_000, jobs_per_s=500, seconds=120.0)
QUICK = Plan(boards=2_000, jobs_per_s=300, seconds=15.0)


class Trial:
    """One run; fills `figures`."""

    def __init__(self, plan: Plan, broker: BrokerProcess, folder: Path) -> None:
        self.figures: dict[str, float] = {}
        self._plan = plan
        self._broker = broker
        self._folder = folder
        self._online = plan.boards

    async def run(self) -> None:
        """Let the boards come, load them, take power away."""
        url = self._broker.url
        async with crowd(url, self._folder, self._plan.boards) as come:
            self.figures["come_s"] = come.come_s
            await self._idle(come.dispatcher)
            async with under_load(url, self._plan.jobs_per_s) as load:
                await self._steady(come, load)
                await self._deaths(come)
                await self._restart(come)
            self.figures["without_answer"] = float(sum(load.device.failed.values()))

    async def _idle(self, dispatcher: psutil.Process) -> None:
        """Without jobs: what heartbeats alone cost."""
        span_s = self._plan.seconds / 12
        _say(f"all are there; heartbeats alone for {span_s:.0f} s")
        before = cpu_s(dispatcher)
        await asyncio.sleep(span_s)
        self.figures["idle_cpu_pct"] = (cpu_s(dispatcher) - before) / span_s * 100

    async def _steady(self, come: Crowd, load: Load) -> None:
        """Nothing but work."""
        dispatcher, broker = come.dispatcher, psutil.Process(self._broker.pid)
        _say(f"{self._plan.jobs_per_s} jobs/s for {self._plan.seconds:.0f} s")
        await asyncio.sleep(2)
        for one in come.boards:
            await one.ask("report")
        begun, jobs = time.monotonic(), len(load.latencies_s)
        before, broker_before = cpu_s(dispatcher), cpu_s(broker)
        await asyncio.sleep(self._plan.seconds)
        wall_s = time.monotonic() - begun
        own_s = cpu_s(dispatcher) - before
        done = load.latencies_s[jobs:]
        delays = [x for one in come.boards for x in (await one.ask("report"))["delays_s"]]
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

    async def _deaths(self, come: Crowd) -> None:
        """Boards that hold jobs lose power, one after the other."""
        _say(f"{DEATHS} boards lose power")
        told, counted, died_at = [], [], dict[str, float]()
        for number in range(DEATHS):
            killed = await self._killed(come.boards, number)
            self._online -= 1
            counted_at = await come.watcher.until(online=self._online)
            told.append(come.watcher.gone_at[killed["board"]] - killed["at"])
            counted.append(counted_at - killed["at"])
            died_at |= dict.fromkeys(killed["jobs"], killed["at"])
        await asyncio.sleep(AGAIN_WITHIN_S)
        seen = [pair for one in come.boards for pair in (await one.ask("report"))["again"]]
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

    async def _restart(self, come: Crowd) -> None:
        """The dispatcher loses power and comes back while jobs go on arriving."""
        _say("the dispatcher loses power")
        come.dispatcher.kill()
        come.dispatcher.wait(10)
        for one in come.boards:
            await one.ask("report")
        begun = time.monotonic()
        second = come.start_dispatcher()
        known_at = await come.watcher.until(online=self._online)
        await asyncio.sleep(1)
        firsts = [(await one.ask("report"))["first_at"] for one in come.boards]
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
