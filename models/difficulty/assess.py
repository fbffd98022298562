"""What predictions for left-out prompts are worth: AUC with bootstrap intervals, calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fleet_protocol.manifest import AucInterval
from models.difficulty.fit import BoolArray, Float64Array, Folds, sigmoid

Counts: TypeAlias = npt.NDArray[np.int64]

RESAMPLES: Final = 1000
_INTERVAL_PERCENT: Final = (2.5, 97.5)
_GROUPS: Final = 10
_DIGITS: Final = 4


def assign_folds(prompts: Sequence[str], is_wrong: BoolArray, *, folds: int, seed: int) -> Folds:
    """Return each prompt's fold, 0 to folds - 1.

    Every fold has about the same share of wrong ones; prompts that differ only in case or spaces
    share a fold, or the model would be asked what it has seen. Decided by hash: the order of the
    rows does not matter, nor does numpy's version.
    """
    keys = [
        hashlib.sha256(f"{seed}:{' '.join(prompt.lower().split())}".encode()).digest()
        for prompt in prompts
    ]
    groups = {key: bool(wrong) for key, wrong in sorted(zip(keys, is_wrong, strict=True))}
    order = sorted(groups, key=lambda key: (groups[key], key))
    place = {key: number % folds for number, key in enumerate(order)}
    return np.array([place[key] for key in keys], np.int64)


def auc(scores: Float64Array, is_wrong: BoolArray) -> float:
    """Return how often a wrong one scores above a right one; a tie counts half.

    0.5 where there is only one kind. Source: the Mann-Whitney U statistic.
    """
    wrong = int(is_wrong.sum())
    right = len(is_wrong) - wrong
    if not wrong or not right:
        return 0.5
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[is_wrong].sum() - wrong * (wrong + 1) / 2) / (wrong * right))


def auc_intervals(
    scores: dict[str, Float64Array], is_wrong: BoolArray, *, against: str, seed: int
) -> dict[str, AucInterval]:
    """Return each score's AUC, and under `gain:NAME` its lead over the score `against`.

    All on the same resampled prompts, so that the leads' intervals are paired ones.
    """
    draws = [_aucs(scores, is_wrong, rows) for rows in _resample(len(is_wrong), seed=seed)]
    full = _aucs(scores, is_wrong, np.arange(len(is_wrong)))
    found: dict[str, AucInterval] = {}
    for name in scores:
        found[name] = _interval(full[name], [draw[name] for draw in draws])
        gains = [draw[name] - draw[against] for draw in draws]
        found[f"gain:{name}"] = _interval(full[name] - full[against], gains)
    return found


def calibration_error(predicted: Float64Array, is_wrong: BoolArray) -> float:
    """Return the mean distance of predicted and seen shares over ten groups of equal size."""
    groups = np.array_split(np.argsort(predicted, kind="stable"), _GROUPS)
    distances = [abs(float(predicted[at].mean() - is_wrong[at].mean())) for at in groups]
    return round(sum(distances) / len(distances), _DIGITS)


def brier(predicted: Float64Array, is_wrong: BoolArray) -> float:
    """Return the mean squared error of probabilities."""
    return round(float(np.mean((predicted - is_wrong) ** 2)), _DIGITS)


def probabilities(log_odds: Float64Array, slope: float, offset: float) -> Float64Array:
    """Return calibrated probabilities."""
    return sigmoid(slope * log_odds + offset)


def _aucs(scores: dict[str, Float64Array], is_wrong: BoolArray, rows: Counts) -> dict[str, float]:
    return {name: auc(values[rows], is_wrong[rows]) for name, values in scores.items()}


def _resample(count: int, *, seed: int) -> list[Counts]:
    random = np.random.default_rng(seed)
    return [random.integers(0, count, count) for _ in range(RESAMPLES)]


def _interval(value: float, draws: list[float]) -> AucInterval:
    low, high = np.percentile(draws, _INTERVAL_PERCENT)
    return AucInterval(
        value=round(value, _DIGITS),
        low=round(float(low), _DIGITS),
        high=round(float(high), _DIGITS),
    )
