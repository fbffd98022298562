"""What the scheduling policies are worth, by the simulator: `python bench/policies.py [--quick]`.

Three questions, asked once a seed of every policy, which meet the same jobs, boards and faults:

- At which rate may jobs come so that the p95 stays within a limit? Found by halving, between rates
  2 % apart. The limit is the deadline of `fleet sim`, 10 s; half and twice of it are shown, too.
  Besides an unequal fleet, with and without faults, boards that are all alike are asked: there a
  policy can gain little.
- Which share of the jobs is answered within those 10 s, at a given rate?
- How far is a policy's p99 from that of an oracle, which knows true speeds and lengths of answers?

Boards are modelled: see docs/simulation.md. Ratios are geometric means over the seeds, and their
spreads these means' 95 % intervals, not the lowest and highest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.report import Aim, report
from cloud_dispatcher.simulation.comparison import Trial, run_trial
from cloud_dispatcher.simulation.figures import Estimate, Figures, estimate, ratio
from cloud_dispatcher.simulation.scenario import Arrivals, Faults, Scenario, Spells

UNEQUAL: Final = {"pi4": 5, "pi5": 3, "jetson": 2}
ALIKE: Final = {"pi5": 10}
CALM: Final = Faults(
    throttling=Spells(), board_loss=Spells(), link_loss=Spells(), stale_share=0.0, wrong_share=0.0
)
FLEETS: Final = {"rough": (UNEQUAL, Faults()), "calm": (UNEQUAL, CALM), "alike": (ALIKE, CALM)}
JOBS: Final = 2_000
"""Some 80 s at what the unequal boards can do: several times the limit, or an overload would not
show."""
LIMITS_S: Final = (10, 5, 20)
"""The first one is that of `fleet sim`."""
PATIENCE_S: Final = 60
"""Nothing is given up before it could no longer count."""
LOADS: Final = tuple(0.05 * 1.02**step for step in range(180))
"""Rates of arrival over what the boards could do, from a twentieth to 1.73."""

CARRIERS: Final = ("round_robin", "wlc", "expected_finish")
RIVALS: Final = ("oracle", "expected_finish", "wlc", "round_robin")
BEHIND: Final = (("rough", 0.6), ("calm", 0.6), ("rough", 0.3), ("rough", 0.8))
IN_TIME: Final = (("rough", 0.6), ("rough", 0.8))


class Question(msgspec.Struct, frozen=True):
    """What one policy does with one of `FLEETS`; without a load: which loads it carries."""

    fleet: str
    policy: str
    seed: int
    load: float | None = None
    deadline_s: float = PATIENCE_S


def play(question: Question, load: float) -> Figures:
    """Play a fleet under a policy at a load."""
    boards, faults = FLEETS[question.fleet]
    arrivals = Arrivals(jobs=JOBS, load=load, deadline_s=question.deadline_s)
    scenario = Scenario(boards=boards, arrivals=arrivals, faults=faults)
    return run_trial(Trial(scenario=scenario, policy=question.policy, seed=question.seed))


def answer(question: Question) -> list[float]:
    """Return the loads carried within each of `LIMITS_S`, or (p99 in ms, share in time)."""
    if question.load is not None:
        figures = play(question, question.load)
        return [figures.p99_ms, figures.in_time]
    p95s: dict[int, float] = {}

    def p95_ms(step: int) -> float:
        if step not in p95s:
            p95s[step] = play(question, LOADS[step]).p95_ms
        return p95s[step]

    return [LOADS[last_within(p95_ms, limit_s * 1_000)] for limit_s in LIMITS_S]


def last_within(p95_ms: Callable[[int], float], limit_ms: float) -> int:
    """Return the last of the `LOADS` at which the p95 is within the limit; 0: maybe none is."""
    low, high = 0, len(LOADS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p95_ms(middle) <= limit_ms else (low, middle)
    return low


def questions(seeds: Iterable[int]) -> list[Question]:
    """Return all that is asked."""
    return [
        question
        for seed in seeds
        for question in (
            *(Question(fleet, policy, seed) for fleet in FLEETS for policy in CARRIERS),
            *(Question(fleet, policy, seed, load) for fleet, load in BEHIND for policy in RIVALS),
            *(
                Question(fleet, policy, seed, load, deadline_s=LIMITS_S[0])
                for fleet, load in IN_TIME
                for policy in CARRIERS
            ),
        )
    ]


class Answers:
    """What was answered, by question, over the seeds."""

    def __init__(self, asked: Sequence[Question], answers: Sequence[Sequence[float]]) -> None:
        self._found: dict[Question, list[Sequence[float]]] = {}
        for question, values in zip(asked, answers, strict=True):
            self._found.setdefault(msgspec.structs.replace(question, seed=0), []).append(values)

    def of(self, question: Question, place: int) -> list[float]:
        """Return one value a seed."""
        return [values[place] for values in self._found[question]]


def ask_all(asked: Sequence[Question], processes: int) -> Answers:
    """Ask several at a time, and say how far it is."""
    found: list[Sequence[float]] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for values in pool.map(answer, asked):
            found.append(values)
            if sys.stderr.isatty():
                print(f"\r{len(found)} of {len(asked)}", end="", file=sys.stderr, flush=True)
    return Answers(asked, found)


def figures_of(answers: Answers) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Return the policies' own figures, and the ratios between them."""
    ours: dict[str, float] = {}
    ratios: dict[str, Estimate] = {}
    for fleet in FLEETS:
        for place, limit_s in enumerate(LIMITS_S):
            loads = {name: answers.of(Question(fleet, name, 0), place) for name in CARRIERS}
            for name, values in loads.items():
                ours[f"{name}_{fleet}_{limit_s}s_load"] = estimate(values).mean
            for name in CARRIERS[1:]:
                key = f"{name}_vs_round_robin_within_{limit_s}s_{fleet}"
                ratios[key] = ratio(loads[name], loads[CARRIERS[0]])
    for fleet, load in BEHIND:
        p99s = {name: answers.of(Question(fleet, name, 0, load), 0) for name in RIVALS}
        for name in RIVALS[1:]:
            ratios[f"{name}_p99_vs_oracle_{fleet}_{load}"] = ratio(p99s[name], p99s[RIVALS[0]])
        for name, values in p99s.items():
            ours[f"{name}_{fleet}_{load}_p99_ms"] = estimate(values).mean
    for fleet, load in IN_TIME:
        for name in CARRIERS:
            question = Question(fleet, name, 0, load, deadline_s=LIMITS_S[0])
            ours[f"{name}_{fleet}_{load}_in_time"] = estimate(answers.of(question, 1)).mean
    return ours, ratios


def main() -> None:
    """Ask everything and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 seeds instead of 20")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    asked = questions(range(1, 5 if options.quick else 21))
    ours, found = figures_of(ask_all(asked, options.processes))
    gain = found[f"wlc_vs_round_robin_within_{LIMITS_S[0]}s_rough"]
    behind = found["expected_finish_p99_vs_oracle_rough_0.6"]
    found = {
        "wlc_vs_round_robin_within_p95": gain,
        "expected_finish_p99_vs_oracle": behind,
        **found,
    }
    worst = max(
        found[f"expected_finish_p99_vs_oracle_{fleet}_{load}"].mean for fleet, load in BEHIND
    )
    report(
        "policies",
        ours=ours,
        peers={},
        # The median of the three is the mean, their spread the interval.
        ratios={name: [one.low, one.mean, one.high] for name, one in found.items()},
        aims={
            "wlc_vs_round_robin_within_p95": Aim(gain.mean, at_least=1.27),
            "expected_finish_p99_vs_oracle": Aim(behind.mean, at_most=1.15),
            "expected_finish_p99_vs_oracle_worst": Aim(worst, at_most=1.15),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
