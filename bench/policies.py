"""What the scheduling policies are worth, by the simulator: `python bench/policies.py [--quick]`.

Two questions, each asked once a seed: how many jobs a second a fleet carries under a policy while
its p95 stays within a limit (found by halving), and how far `expected_finish` is from an oracle
that knows true speeds and the lengths of answers. Boards are modelled: see docs/simulation.md.
"""

from __future__ import annotations

import argparse
import math
import sys

from bench.report import Aim, report
from cloud_dispatcher.simulation.comparison import Trial, run_trial
from cloud_dispatcher.simulation.figures import Estimate, estimate, ratio
from cloud_dispatcher.simulation.scenario import Arrivals, Faults, Scenario, Spells

BOARDS = {"pi4": 5, "pi5": 3, "jetson": 2}
JOBS = 2_000
"""Some 80 s at what these boards can do: ten times the limit, or an overload would not show."""
LIMIT_MS = 8_000
LEAST, MOST = 0.04, 1.28
HALVINGS = 6
CALM = Faults(
    throttling=Spells(), board_loss=Spells(), link_loss=Spells(), stale_share=0.0, wrong_share=0.0
)

WORLDS = (("rough_0.6", 0.6, Faults()), ("calm_0.6", 0.6, CALM), ("rough_0.3", 0.3, Faults()))
CARRIERS = ("round_robin", "wlc")


def scenario(load: float, faults: Faults) -> Scenario:
    """Return the unequal fleet at a load."""
    arrivals = Arrivals(jobs=JOBS, load=load, deadline_s=30.0)
    return Scenario(boards=BOARDS, arrivals=arrivals, faults=faults)


def carried(policy: str, seed: int) -> float:
    """Return the largest load at which the p95 is within the limit."""
    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = scenario(math.exp(middle), Faults())
        holds = run_trial(Trial(scenario=tried, policy=policy, seed=seed)).p95_ms <= LIMIT_MS
        low, high = (middle, high) if holds else (low, middle)
    return math.exp(low)


def against_oracle(load: float, seeds: range, faults: Faults) -> dict[str, Estimate]:
    """Return each policy's p99 over the oracle's, seed by seed."""
    tried = scenario(load, faults)

    def p99s(policy: str) -> list[float]:
        trials = [Trial(scenario=tried, policy=policy, seed=seed) for seed in seeds]
        return [run_trial(trial).p99_ms for trial in trials]

    best = p99s("oracle")
    return {policy: ratio(p99s(policy), best) for policy in ("expected_finish", "wlc")}


def told(name: str, found: Estimate) -> Estimate:
    """Say a figure while the next one is awaited."""
    interval = f"[{found.low:.3f}, {found.high:.3f}]"
    print(f"{name}: {found.mean:.3f} {interval}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Ask both questions and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 seeds instead of 20")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    seeds = range(1, 4 if options.quick else 21)
    ours: dict[str, float] = {}
    loads = {policy: [carried(policy, seed) for seed in seeds] for policy in CARRIERS}
    for policy, found in loads.items():
        ours[f"{policy}_load"] = told(f"{policy}_load", estimate(found)).mean
    gains = told("wlc over round_robin", ratio(loads["wlc"], loads["round_robin"]))
    behind = {}
    for name, load, faults in WORLDS:
        for policy, found in against_oracle(load, seeds, faults).items():
            behind[policy, name] = told(f"{policy}_p99_over_oracle_{name}", found).mean
            ours[f"{policy}_p99_over_oracle_{name}"] = found.mean
    report(
        "policies",
        ours=ours,
        peers={},
        ratios={"round_robin": gains.mean},
        aims={
            "wlc_over_round_robin": Aim(gains.low, at_least=1.27),
            "p99_over_oracle": Aim(
                max(behind["expected_finish", name] for name, _, _ in WORLDS), at_most=1.15
            ),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
