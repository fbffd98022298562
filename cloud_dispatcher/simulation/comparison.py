"""Many runs: every policy meets the same seeds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec

from cloud_dispatcher.simulation.arrivals import Demand
from cloud_dispatcher.simulation.figures import TAIL, Estimate, Figures, estimate, figures_of, ratio
from cloud_dispatcher.simulation.oracle import policy_named
from cloud_dispatcher.simulation.scenario import Scenario
from cloud_dispatcher.simulation.world import Outcome, World


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run to be made.

    Attributes:
        policy: One of `oracle.POLICIES`.
        trace: Recorded jobs, instead of drawn ones.
    """

    scenario: Scenario
    policy: str
    seed: int
    trace: list[Demand] | None = None


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is worth, over all seeds.

    Attributes:
        p95_ratio: Its p95 over the first policy's, seed by seed.
        in_time_ratio: The same of the jobs answered in time.
        tail_ms: Mean spans that the `TAIL` shares of the jobs exceed.
    """

    policy: str
    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    in_time: Estimate
    busy: Estimate
    fairness: Estimate
    attempts: Estimate
    p95_ratio: Estimate
    in_time_ratio: Estimate
    tail_ms: tuple[float, ...]


def play(trial: Trial) -> Outcome:
    """Make a run."""
    # Every job is a few short-lived values without cycles.
    gc.set_threshold(100_000, 20, 20)
    world = World(trial.scenario, trial.seed, trace=trial.trace)
    return world.play(policy_named(trial.policy, trial.scenario.engine.scheduling, world))


def run_trial(trial: Trial) -> Figures:
    """Make a run, and return its figures."""
    return figures_of(play(trial), warm_up=trial.scenario.warm_up)


def run_all(
    trials: Sequence[Trial], *, processes: int = 1, told: Callable[[int], None] = lambda _: None
) -> list[Figures]:
    """Make all runs, several at a time; `told` hears how many are done."""
    results: list[Figures] = []
    if processes <= 1:
        for trial in trials:
            results.append(run_trial(trial))
            told(len(results))
        return results
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for figures in pool.map(run_trial, trials):
            results.append(figures)
            told(len(results))
    return results


def rows_of(trials: Sequence[Trial], results: Sequence[Figures]) -> list[PolicyRow]:
    """Return one row a policy, in the order in which they first come."""
    runs: dict[str, list[Figures]] = {}
    for trial, figures in zip(trials, results, strict=True):
        runs.setdefault(trial.policy, []).append(figures)
    first = next(iter(runs.values()))
    return [_row(policy, found, first) for policy, found in runs.items()]


def _row(policy: str, runs: Sequence[Figures], first: Sequence[Figures]) -> PolicyRow:
    def of(name: str) -> Estimate:
        return estimate([getattr(run, name) for run in runs])

    def against(name: str) -> Estimate:
        return ratio([getattr(run, name) for run in runs], [getattr(run, name) for run in first])

    return PolicyRow(
        policy=policy,
        p50_ms=of("p50_ms"),
        p95_ms=of("p95_ms"),
        p99_ms=of("p99_ms"),
        in_time=of("in_time"),
        busy=of("busy"),
        fairness=of("fairness"),
        attempts=of("attempts"),
        p95_ratio=against("p95_ms"),
        in_time_ratio=against("in_time"),
        tail_ms=tuple(
            sum(run.tail_ms[place] for run in runs) / len(runs) for place in range(len(TAIL))
        ),
    )
