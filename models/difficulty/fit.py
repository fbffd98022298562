"""Regularised logistic regression in numpy, and the strength of its regularisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Float64Array: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Folds: TypeAlias = npt.NDArray[np.int64]

STRENGTHS: Final = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Penalties tried on half the squared weights of standardised features."""
_MOST_STEPS: Final = 50
_STILL: Final = 1e-8
_LEAST_PENALTY: Final = 1e-6
_SMALLEST_SPREAD: Final = 1e-9


class Logistic(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model: log-odds = bias + ((rows - means) / scales) @ weights."""

    means: Float64Array
    scales: Float64Array
    weights: Float64Array
    bias: float

    def log_odds(self, rows: Float64Array) -> Float64Array:
        """Return the log-odds [rows] of the first class, for rows [rows, features]."""
        return np.asarray((rows - self.means) / self.scales @ self.weights + self.bias)


def fit_logistic(rows: Float64Array, labels: Float64Array, *, strength: float) -> Logistic:
    """Fit by Newton's method; labels in 0..1. The bias is not penalised."""
    means, spread = rows.mean(axis=0), rows.std(axis=0)
    # What does not vary here says nothing; a later prompt must not blow it up.
    scales = np.where(spread < _SMALLEST_SPREAD, 1.0, spread)
    design = np.column_stack([(rows - means) / scales, np.ones(len(rows))])
    penalty = np.append(np.full(rows.shape[1], strength), _LEAST_PENALTY)
    weights = np.zeros(design.shape[1])
    for _ in range(_MOST_STEPS):
        shares = sigmoid(design @ weights)
        slope = design.T @ (shares - labels) + penalty * weights
        spread_of = shares * (1 - shares)
        curve = (design * spread_of[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        # A step this long overshoots where classes are nearly apart.
        weights = weights - step * min(1.0, 5.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < _STILL:
            break
    return Logistic(means=means, scales=scales, weights=weights[:-1], bias=float(weights[-1]))


def choose_strength(rows: Float64Array, labels: Float64Array, folds: Folds) -> float:
    """Return the strength with the least log-loss on rows left out; the stronger one on a tie."""
    losses = [
        (log_loss(left_out(rows, labels, folds, strengths=[strength]), labels), -strength)
        for strength in STRENGTHS
    ]
    return -min(losses)[1]


def left_out(
    rows: Float64Array, labels: Float64Array, folds: Folds, *, strengths: Sequence[float]
) -> Float64Array:
    """Return each row's log-odds by a model that never saw its fold.

    Args:
        rows: [rows, features].
        labels: 0..1.
        folds: Of each row, from 0.
        strengths: Of each fold's model; one for all.
    """
    found = np.zeros(len(rows))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        strength = strengths[fold % len(strengths)]
        found[out] = fit_logistic(rows[~out], labels[~out], strength=strength).log_odds(rows[out])
    return found


def log_loss(log_odds: Float64Array, labels: Float64Array) -> float:
    """Return the mean negative log-likelihood, in nats."""
    return float(np.mean(np.logaddexp(0.0, log_odds) - labels * log_odds))


def sigmoid(log_odds: Float64Array) -> Float64Array:
    """Return 1 / (1 + e^-x) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(log_odds / 2)))
