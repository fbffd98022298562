"""What the scheduling policies are worth, by the simulator: `python bench/policies.py [--quick]`.

Asked once a seed of every policy, which meet the same jobs, boards and faults:

- How many jobs may come so that the p95 stays within a limit? Each policy is played at a few rates,
  and the rate at which its p95 crosses the limit is interpolated; it is never below the lowest rate
  that is tried, nor above the highest. The limit that counts is the deadline of `fleet sim`, 10 s;
  others are shown, too, for the answer hangs on it. The fleet is unequal and has the default faults
  (`rough`), or none (`calm`); `pushed` is `rough`, but every job is sent to a board at once and
  waits there, while the dispatcher really keeps what nobody has a slot for.
- Which share of the jobs is done within these limits at a load of 0.6?
- How far is a policy's p99 from that of an oracle, which knows true speeds and lengths of answers?

Boards are modelled: see docs/simulation.md. A spread is a 95 % interval over the seeds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.report import Aim, report
from cloud_dispatcher.simulation.comparison import Trial, play
from cloud_dispatcher.simulation.figures import Estimate, estimate, figures_of, ratio
from cloud_dispatcher.simulation.kinds import KINDS
from cloud_dispatcher.simulation.scenario import Arrivals, Faults, Scenario, Spells

BOARDS: Final = {"pi4": 5, "pi5": 3, "jetson": 2}
CALM: Final = Faults(
    throttling=Spells(), board_loss=Spells(), link_loss=Spells(), stale_share=0.0, wrong_share=0.0
)
PUSHED: Final = {name: msgspec.structs.replace(kind, prefetch=256) for name, kind in KINDS.items()}
FLEETS: Final = {
    "rough": Scenario(boards=BOARDS),
    "calm": Scenario(boards=BOARDS, faults=CALM),
    "pushed": Scenario(boards=BOARDS, kinds=PUSHED),
}
JOBS: Final = 1_500
"""Some 65 s at what these boards can do: several times the limit, or an overload would not show."""
PATIENCE_S: Final = 60.0
"""Nothing is given up before it could no longer count."""

LIMITS_S: Final = (10, 5, 8, 12, 15, 20)
LOADS: Final = (0.1, 0.4, 0.7, 0.9, 1.05)
"""Rates of arrival over what the boards could do if nothing went wrong."""
CARRIERS: Final = ("round_robin", "wlc")
RIVALS: Final = ("oracle", "expected_finish", "wlc")
USUAL: Final = ("rough", 0.6)
BEHIND: Final = (USUAL, ("calm", 0.6), ("rough", 0.8))


class Question(msgspec.Struct, frozen=True):
    """What a policy does with one of `FLEETS` at a load."""

    fleet: str
    policy: str
    load: float
    seed: int = 0


class Answer(msgspec.Struct, frozen=True):
    """What came of it; `within`: the share of the jobs that took each of `LIMITS_S` at most."""

    p95_ms: float
    p99_ms: float
    within: tuple[float, ...]


def questions(seed: int) -> Iterator[Question]:
    """Yield all that is asked with a seed."""
    for fleet, policy, load in product(FLEETS, CARRIERS, LOADS):
        yield Question(fleet, policy, load, seed)
    for (fleet, load), policy in product(BEHIND, RIVALS):
        yield Question(fleet, policy, load, seed)
    yield Question(USUAL[0], "round_robin", USUAL[1], seed)


def answer(question: Question) -> Answer:
    """Play it."""
    arrivals = Arrivals(jobs=JOBS, load=question.load, deadline_s=PATIENCE_S)
    scenario = msgspec.structs.replace(FLEETS[question.fleet], arrivals=arrivals)
    outcome = play(Trial(scenario=scenario, policy=question.policy, seed=question.seed))
    spans_s = [one.span_ms / 1_000 for one in outcome.endings[int(scenario.warm_up * JOBS) :]]
    within = (sum(span_s <= limit_s for span_s in spans_s) / len(spans_s) for limit_s in LIMITS_S)
    figures = figures_of(outcome, warm_up=scenario.warm_up)
    return Answer(figures.p95_ms, figures.p99_ms, tuple(within))


def ask_all(asked: Sequence[Question], processes: int) -> dict[Question, Answer]:
    """Ask several at a time, and say how far it is."""
    answers: dict[Question, Answer] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for question, found in zip(asked, pool.map(answer, asked), strict=True):
            answers[question] = found
            if sys.stderr.isatty():
                print(f"\r{len(answers)} of {len(asked)}", end="", file=sys.stderr, flush=True)
    return answers


def load_within(p95s_ms: Sequence[float], limit_ms: float) -> float:
    """Return the load up to which the p95 at each of `LOADS` is within a limit.

    The lowest one counts as carried in any case, so that a ratio to it is rather too small.
    """
    points = list(zip(LOADS, map(math.log, p95s_ms), strict=True))
    limit, (carried, known) = math.log(limit_ms), points[0]
    if known > limit:
        return carried
    for load, found in points[1:]:
        if found > limit:
            return carried + (load - carried) * (limit - known) / (found - known)
        carried, known = load, found
    return carried


def ratio_of_sums(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return how many times `others` the values are in all; the interval is a jackknife's."""
    whole, count = sum(values) / sum(others), len(values)
    left_out = [
        (sum(values) - value) / (sum(others) - other)
        for value, other in zip(values, others, strict=True)
    ]
    found = estimate([count * whole - (count - 1) * one for one in left_out])
    return Estimate(whole, whole - (found.mean - found.low), whole + (found.high - found.mean))


def compare(
    answers: Mapping[Question, Answer], seeds: Sequence[int]
) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Return the policies' own figures, and the ratios between them."""
    ours: dict[str, float] = {}
    ratios: dict[str, Estimate] = {}
    for fleet, limit_s in product(FLEETS, LIMITS_S):
        loads = {
            policy: [
                load_within(
                    [answers[Question(fleet, policy, load, seed)].p95_ms for load in LOADS],
                    limit_s * 1_000,
                )
                for seed in seeds
            ]
            for policy in CARRIERS
        }
        for policy, values in loads.items():
            ours[f"{policy}_{fleet}_load_within_{limit_s}s"] = statistics.fmean(values)
        key = f"wlc_vs_round_robin_{fleet}_within_{limit_s}s"
        ratios[key] = ratio_of_sums(loads["wlc"], loads["round_robin"])
    for fleet, load in BEHIND:
        p99s = {
            policy: [answers[Question(fleet, policy, load, seed)].p99_ms for seed in seeds]
            for policy in RIVALS
        }
        for policy, values in p99s.items():
            ours[f"{policy}_{fleet}_{load}_p99_ms"] = statistics.fmean(values)
        for policy in RIVALS[1:]:
            ratios[f"{policy}_p99_vs_oracle_{fleet}_{load}"] = ratio(p99s[policy], p99s["oracle"])
    for place, limit_s in enumerate(LIMITS_S):
        shares = {
            policy: [
                answers[Question(USUAL[0], policy, USUAL[1], seed)].within[place] for seed in seeds
            ]
            for policy in CARRIERS
        }
        for policy, values in shares.items():
            ours[f"{policy}_{USUAL[0]}_{USUAL[1]}_done_within_{limit_s}s"] = statistics.fmean(
                values
            )
        key = f"wlc_vs_round_robin_done_within_{limit_s}s"
        ratios[key] = ratio_of_sums(shares["wlc"], shares["round_robin"])
    return ours, ratios


def tell(
    ours: Mapping[str, float], ratios: Mapping[str, Estimate], *, as_json: bool = False
) -> None:
    """Print the figures."""
    gain = ratios["wlc_vs_round_robin_rough_within_10s"]
    behind = ratios["expected_finish_p99_vs_oracle_rough_0.6"]
    worst = max(ratios[f"expected_finish_p99_vs_oracle_{f}_{load}"].mean for f, load in BEHIND)
    named = {"wlc_vs_round_robin_within_p95": gain, "expected_finish_p99_vs_oracle": behind}
    report(
        "policies",
        ours=ours,
        peers={},
        # The median of the three is the mean, their spread the interval.
        ratios={name: [one.low, one.mean, one.high] for name, one in {**named, **ratios}.items()},
        aims={
            "wlc_vs_round_robin_within_p95": Aim(gain.low, at_least=1.27),
            "expected_finish_p99_vs_oracle": Aim(behind.mean, at_most=1.15),
            "expected_finish_p99_vs_oracle_worst": Aim(worst, at_most=1.15),
        },
        as_json=as_json,
    )


def main() -> None:
    """Ask everything and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 seeds instead of 20")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    seeds = range(1, 5 if options.quick else 21)
    asked = [question for seed in seeds for question in questions(seed)]
    tell(*compare(ask_all(asked, options.processes), seeds), as_json=options.json)


if __name__ == "__main__":
    main()
