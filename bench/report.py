"""The one form in which every benchmark ends: a table for people, one JSON object for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict


@dataclass(frozen=True)
class Aim:
    """What a figure should be: at least or at most something."""

    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is."""
        enough = self.at_least is None or self.value >= self.at_least
        return enough and (self.at_most is None or self.value <= self.at_most)

    @property
    def text(self) -> str:
        """The aim for people, e.g. `>= 6`."""
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


class AimReport(TypedDict):
    """An aim as the JSON object shows it."""

    value: float
    aim: str
    met: bool


class Report(TypedDict):
    """The JSON object; `spreads` has the lowest and the highest ratio of all rounds."""

    bench: str
    date: str
    machine: str
    ours: dict[str, float]
    peers: dict[str, dict[str, float]]
    ratios: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    aims: dict[str, AimReport]


def report(
    bench: str,
    *,
    ours: Mapping[str, float],
    peers: Mapping[str, Mapping[str, float]],
    ratios: Mapping[str, float | Sequence[float]],
    aims: Mapping[str, Aim],
    as_json: bool = False,
) -> None:
    """Print the figures; the last line of the output is the JSON object.

    Args:
        bench: Name of the benchmark.
        ours: Our figures; each name ends in its unit.
        peers: The same figures of what we compare with, measured in the same run.
        ratios: How many times better than a peer we are, by its name; one value, or that of every
            round.
        aims: What the figures should be.
        as_json: Leave the table out.
    """
    result = build_report(bench, ours=ours, peers=peers, ratios=ratios, aims=aims)
    if not as_json:
        print_table(result)
    print(json.dumps(result))


def build_report(
    bench: str,
    *,
    ours: Mapping[str, float],
    peers: Mapping[str, Mapping[str, float]],
    ratios: Mapping[str, float | Sequence[float]],
    aims: Mapping[str, Aim],
) -> Report:
    """Return the JSON object, figures rounded to four significant digits."""
    rounds = {name: [one] if isinstance(one, float) else one for name, one in ratios.items()}
    return Report(
        bench=bench,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=describe_machine(),
        ours=_round_all(ours),
        peers={name: _round_all(figures) for name, figures in peers.items()},
        ratios={name: _round(statistics.median(values)) for name, values in rounds.items()},
        spreads={
            name: (_round(min(values)), _round(max(values))) for name, values in rounds.items()
        },
        aims={
            name: AimReport(value=_round(aim.value), aim=aim.text, met=aim.met)
            for name, aim in aims.items()
        },
    )


def print_table(result: Report) -> None:
    """Print a report for people."""
    print(f"{result['bench']}, {result['date']}, {result['machine']}")
    columns = ["ours", *result["peers"]]
    width = max(18, *(len(name) + 2 for name in columns))
    print(f"{'':32}" + "".join(f"{name:>{width}}" for name in columns))
    for figure, value in result["ours"].items():
        theirs = [figures.get(figure) for figures in result["peers"].values()]
        cells = ["" if one is None else f"{one:,.4g}" for one in (value, *theirs)]
        print(f"{figure:32}" + "".join(f"{cell:>{width}}" for cell in cells))
    for name, ratio in result["ratios"].items():
        low, high = result["spreads"][name]
        spread = f"   {low:.3g} to {high:.3g}" if low < high else ""
        print(f"{'ratio ' + name:32}{ratio:>17.4g}x{spread}")
    for name, aim in result["aims"].items():
        verdict = "met" if aim["met"] else "MISSED"
        print(f"{'aim ' + name:32}{aim['value']:>18,.4g}  {aim['aim']}: {verdict}")


def describe_machine() -> str:
    """Return processor, cores and system in a few words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    with_names = Path("/proc/cpuinfo")
    if with_names.is_file():
        for line in with_names.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"model name", "Model"}:
                return value.strip()
    return platform.processor() or platform.machine()


def _round_all(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: _round(value) for name, value in figures.items()}


def _round(value: float) -> float:
    return float(f"{value:.4g}")
