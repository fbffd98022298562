"""Durable jobs per second, end to end, beside four other queues in the same run.

Ours: this process is the device; broker, dispatcher and echo worker are processes of their own,
with their defaults: each job is on the disk (SQLite WAL, synchronous=FULL) before it is
acknowledged or assigned, on the board's disk before it is worked on, and each result before it is
told. Beside that the same with synchronous=NORMAL, and on the embedded broker.

The peers: a producer and a worker process, a server with files. Dramatiq, Celery and Huey on Redis
(append-only file), and JetStream written by hand, each twice: `always` has each write on the disk
before it is confirmed, as we have; `everysec` brings it there once a second, as Redis usually does
(JetStream's default is two minutes).

All get the same prompt and the same number in flight, in alternating rounds; medians are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.carrier import carried_per_s, require_client
from bench.own_fleet import PROMPT, OwnFleet, own_fleet
from bench.queue_peers import WORKERS, Sync, queue_peer, require_servers
from bench.report import Aim, report
from bench.sides import Side
from fleet_cli.broker import BrokerKind
from fleet_protocol import codec
from fleet_protocol.log import set_up_logging
from fleet_protocol.messages import Caching, JobSubmit

WINDOW = 256
ROUNDS = 3
WARM_S = 1.0
HOPS = 3
"""Messages without which no job is done: submission, assignment, answer. In truth we send more."""
OURS = {
    "ours": (BrokerKind.MOSQUITTO, "full"),
    "normal": (BrokerKind.MOSQUITTO, "normal"),
    "embedded": (BrokerKind.EMBEDDED, "full"),
}
AT_LEAST = {"dramatiq": 6.0, "celery": 30.0, "jetstream": 2.0}
Figures = dict[str, float]


def own_side(stack: contextlib.ExitStack, folder: Path, name: str) -> OwnFleet:
    """Start one of our own fleets."""
    kind, synchronous = OURS[name]
    environ = {"EDGEFLEET_DISPATCHER_STORE__SYNCHRONOUS": synchronous}
    return stack.enter_context(own_fleet(folder / name, kind, environ=environ))


def figures(name: str, side: Side, *, load_s: float, alone_s: float) -> Figures:
    """One round of one side: throughput with a full window, then one job at a time."""
    load = side.run(seconds=load_s, window=WINDOW)
    alone = side.run(seconds=alone_s, window=1)
    print(
        f"{name}: {load.jobs_per_s:.0f} jobs/s, {load.cpu_us_per_job:.0f} us CPU a job, "
        f"alone {alone.quantile_ms(0.5):.1f} ms",
        file=sys.stderr,
    )
    return {
        "jobs_per_s": load.jobs_per_s,
        "p50_ms": alone.quantile_ms(0.50),
        "p99_ms": alone.quantile_ms(0.99),
        "cpu_us_per_job": load.cpu_us_per_job,
    }


def medians(rounds: list[Figures]) -> Figures:
    """Return the median of each figure over the rounds."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


class Comparison:
    """The figures of all sides, round by round."""

    def __init__(self, sides: Mapping[str, Side], broker_url: str) -> None:
        self.rounds: dict[str, list[Figures]] = {name: [] for name in sides}
        self.carried: list[float] = []
        self._sides = sides
        self._broker_url = broker_url

    def play(self, number: int, *, load_s: float, alone_s: float, messages: int) -> None:
        """Let all have their turn; another one begins in every round."""
        names = list(self._sides)
        begins = number % len(names)
        for name in (*names[begins:], *names[:begins]):
            side = self._sides[name]
            one = figures(name, side, load_s=load_s, alone_s=alone_s)
            self.rounds[name].append(one)
            if name == "ours":
                payload = codec.encode(JobSubmit(prompt=PROMPT, cache=Caching.OFF))
                rate = carried_per_s(self._broker_url, messages=messages, payload=payload)
                print(f"mosquitto_pub: {rate:.0f} messages/s", file=sys.stderr)
                self.carried.append(rate)

    def ratios(self, name: str) -> list[float]:
        """Return our jobs/s over a side's, round by round."""
        pairs = zip(self.rounds["ours"], self.rounds[name], strict=True)
        return [mine["jobs_per_s"] / theirs["jobs_per_s"] for mine, theirs in pairs]

    def carried_shares(self) -> list[float]:
        """Return what of the broker's power for a C client our jobs use, round by round."""
        pairs = zip(self.rounds["ours"], self.carried, strict=True)
        return [HOPS * mine["jobs_per_s"] / rate for mine, rate in pairs]


def tell(comparison: Comparison, *, as_json: bool) -> None:
    """Print the figures."""
    mine = medians(comparison.rounds["ours"])
    peers = [name for name in comparison.rounds if name not in OURS]
    ratios = {name: comparison.ratios(name) for name in peers}
    shares = {
        "full_share_of_normal": comparison.ratios("normal"),
        "hops_share_of_c_client": comparison.carried_shares(),
    }
    ours = mine | {name: statistics.median(values) for name, values in shares.items()}
    ours["c_client_messages_per_s"] = statistics.median(comparison.carried)
    for other in ("normal", "embedded"):
        ours |= {
            f"{other}_{figure}": value
            for figure, value in medians(comparison.rounds[other]).items()
        }
    report(
        "dispatch",
        ours=ours,
        peers={name: medians(comparison.rounds[name]) for name in peers},
        ratios=ratios,
        aims={
            "jobs_per_s": Aim(ours["jobs_per_s"], at_least=4_000),
            "embedded_jobs_per_s": Aim(ours["embedded_jobs_per_s"], at_least=8_000),
            "p50_ms": Aim(ours["p50_ms"], at_most=3),
            "p99_ms": Aim(ours["p99_ms"], at_most=15),
            "cpu_us_per_job": Aim(ours["cpu_us_per_job"], at_most=120),
            "full_share_of_normal": Aim(ours["full_share_of_normal"], at_least=0.7),
            "hops_share_of_c_client": Aim(ours["hops_share_of_c_client"], at_least=0.7),
            **{
                name: Aim(statistics.median(values), at_least=AT_LEAST[name.partition("_")[0]])
                for name, values in ratios.items()
                if name.partition("_")[0] in AT_LEAST
            },
        },
        as_json=as_json,
    )


def main() -> None:
    """Run all sides in turn and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one minute, not three")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    options = parser.parse_args()
    set_up_logging(level="warning")
    require_client()
    load_s, alone_s, messages = (1.2, 0.5, 10_000) if options.quick else (3.5, 1.0, 20_000)
    with tempfile.TemporaryDirectory() as at, contextlib.ExitStack() as stack:
        folder = Path(at)
        own = {name: own_side(stack, folder, name) for name in OURS}
        sides: dict[str, Side] = dict(own)
        if not options.alone:
            require_servers()
            for name in WORKERS:
                for sync in Sync:
                    label = f"{name}_{sync}"
                    peer = queue_peer(name, folder / label, sync, text=PROMPT)
                    sides[label] = stack.enter_context(peer)
        for side in sides.values():
            side.run(seconds=WARM_S, window=32)
        comparison = Comparison(sides, own["ours"].url)
        for number in range(ROUNDS):
            comparison.play(number, load_s=load_s, alone_s=alone_s, messages=messages)
        for one in own.values():
            one.check()
    tell(comparison, as_json=options.json)


if __name__ == "__main__":
    main()
