"""Tries the ways to run a model on this machine, each for a second or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

import msgspec

from edge_worker.core.tuning import Setup, Trial, choose_trial
from edge_worker.ports import InferenceEngine, ModelError
from edge_worker.service.benchmark import measure_speed

TRIALS_MOST_S: Final = 30.0


class TrialPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to try.

    Attributes:
        variants: Names of graphs.
        providers: Short names of execution providers.
        counts: Numbers of threads, for the CPU provider; a device's own ones are its own affair.
        cores: Physical ones that this process may use.
    """

    variants: Sequence[str]
    providers: Sequence[str]
    counts: Sequence[int]
    cores: int


def run_trials(
    plan: TrialPlan,
    open_engine: Callable[[Setup], InferenceEngine],
    *,
    report: Callable[[str], None],
    most_s: float = TRIALS_MOST_S,
) -> tuple[Trial, ...]:
    """Return the trials that worked; the best graph and provider first, then numbers of threads.

    One engine is open at a time: two would not fit into a small board's memory.

    Args:
        plan: What to try.
        open_engine: Loads the model for a setup.
        report: Takes a line for people about each trial.
        most_s: After so long no further trial begins.

    Raises:
        ModelError: Nothing works; of the last trial.
    """
    trials: list[Trial] = []
    until_s = perf_counter() + most_s
    usual = plan.cores if plan.cores in plan.counts else plan.counts[-1]
    failure: ModelError | None = None
    for variant in plan.variants:
        for provider in plan.providers:
            setup = Setup(variant=variant, provider=provider, threads=usual)
            failure = _try(setup, open_engine, trials=trials, report=report, until_s=until_s)
    if not trials and failure is not None:
        raise failure
    best = choose_trial(trials, cores=plan.cores).setup
    if best.provider == "cpu":
        for count in plan.counts:
            if count != usual:
                setup = msgspec.structs.replace(best, threads=count)
                _try(setup, open_engine, trials=trials, report=report, until_s=until_s)
    return tuple(trials)


def _try(
    setup: Setup,
    open_engine: Callable[[Setup], InferenceEngine],
    *,
    trials: list[Trial],
    report: Callable[[str], None],
    until_s: float,
) -> ModelError | None:
    """Add a trial, or say why there is none: out of time, or it does not work here."""
    if trials and perf_counter() >= until_s:
        report(f"{setup}: not tried, the start would take too long")
        return None
    try:
        trial = _measure(setup, open_engine)
    except ModelError as error:
        report(f"{setup}: {error}")
        return error
    trials.append(trial)
    report(f"{setup}: {trial.decode_tok_s:.1f} tokens/s decode, {trial.prefill_tok_s:.1f} prefill")
    return None


def _measure(setup: Setup, open_engine: Callable[[Setup], InferenceEngine]) -> Trial:
    engine = open_engine(setup)
    try:
        speed = measure_speed(engine)
    finally:
        engine.close()
    return Trial(
        setup=setup,
        decode_tok_s=speed.decode_tok_s,
        prefill_tok_s=speed.prefill_tok_s,
        spread=speed.spread,
    )
