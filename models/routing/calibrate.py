"""From labelled answers to a model's own numbers: a confidence that is a probability, a threshold.

The threshold is the lowest one at which, counting one wrong answer more than was seen, no more
than the stated share of the kept answers is wrong: the correction for a finite sample of conformal
risk control (arXiv 2208.02814).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from fleet_protocol.manifest import Calibration, Routing
from models.difficulty.assess import assign_folds, auc
from models.difficulty.fit import BoolArray, Float64Array, Folds, Logistic, fit_logistic, sigmoid
from models.routing.answers import LabelledAnswer, LabelledAnswersError

FOLDS: Final = 5
SEED: Final = 7
_STRENGTH: Final = 1.0
_DIGITS: Final = 4


class Kept(NamedTuple):
    """What a threshold keeps.

    Attributes:
        of_right: Share of all right answers.
        wrong: Share of wrong ones among what is kept.
        all: Share of all answers.
    """

    of_right: float
    wrong: float
    all: float


def calibrate(answers: Sequence[LabelledAnswer], *, error_rate: float) -> Routing:
    """Fit on all answers; what is said of its worth is from answers left out of the fit."""
    rows, is_wrong = signs_of(answers)
    folds = assign_folds([answer.prompt for answer in answers], is_wrong, folds=FOLDS, seed=SEED)
    fitted = _fit(rows, is_wrong)
    weights = fitted.weights / fitted.scales
    bias = fitted.bias - float(weights @ fitted.means)
    trusted = 1.0 - sigmoid(fitted.log_odds(rows))
    left_out, kept = _left_out(rows, is_wrong, folds, error_rate=error_rate)
    mean, worst, repeated = (round(float(weight), _DIGITS) for weight in weights)
    return Routing(
        min_confidence=round(threshold(trusted, is_wrong, error_rate=error_rate), _DIGITS),
        calibration=Calibration(
            bias=round(bias, _DIGITS),
            mean=mean,
            worst=worst,
            repeated=repeated,
            answers=len(answers),
            right_share=round(1.0 - float(is_wrong.mean()), _DIGITS),
            error_rate=error_rate,
            kept_right_share=round(kept.of_right, _DIGITS),
            kept_wrong_share=round(kept.wrong, _DIGITS),
            auc=round(auc(left_out, is_wrong), _DIGITS),
        ),
    )


def signs_of(answers: Sequence[LabelledAnswer]) -> tuple[Float64Array, BoolArray]:
    """Return the signs [answers, 3], and which answers are wrong; raises LabelledAnswersError."""
    signs = [answer.signs for answer in answers]
    if None in signs:
        raise LabelledAnswersError(
            "some answers are without the signs of doubt that a confidence is made of",
            hint="label them with `python -m models label`",
        )
    rows = np.array(signs, np.float64)
    return rows, np.array([not answer.right for answer in answers], np.bool_)


def threshold(trusted: Float64Array, is_wrong: BoolArray, *, error_rate: float) -> float:
    """Return the lowest confidence to keep, so that the stated share of the kept is wrong at most.

    1.0 where no threshold does: then nothing is kept but what is certain.

    Args:
        trusted: Probability that each answer is right.
        is_wrong: Whether it is not.
        error_rate: 0..1.
    """
    order = np.argsort(-trusted, kind="stable")
    ranked = trusted[order]
    wrong, kept = np.cumsum(is_wrong[order]), np.arange(1, len(order) + 1)
    # Answers trusted alike are kept together.
    is_last = np.append(ranked[1:] < ranked[:-1], True)
    enough = np.flatnonzero(((wrong + 1) / (kept + 1) <= error_rate) & is_last)
    return float(ranked[enough[-1]]) if len(enough) else 1.0


def kept_by(trusted: Float64Array, is_wrong: BoolArray, least: float) -> Kept:
    """Return what a threshold keeps."""
    kept = trusted >= least
    right = int((~is_wrong).sum())
    return Kept(
        of_right=float((kept & ~is_wrong).sum()) / max(1, right),
        wrong=float(is_wrong[kept].mean()) if kept.any() else 0.0,
        all=float(kept.mean()),
    )


def _left_out(
    rows: Float64Array,
    is_wrong: BoolArray,
    folds: Folds,
    *,
    error_rate: float,
) -> tuple[Float64Array, Kept]:
    """Return log-odds of answers left out, and what thresholds chosen without them keep of them."""
    log_odds = np.zeros(len(rows))
    kept = np.zeros(len(rows), np.bool_)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        fitted = _fit(rows[~out], is_wrong[~out])
        seen = 1.0 - sigmoid(fitted.log_odds(rows[~out]))
        least = threshold(seen, is_wrong[~out], error_rate=error_rate)
        log_odds[out] = fitted.log_odds(rows[out])
        kept[out] = 1.0 - sigmoid(log_odds[out]) >= least
    return log_odds, kept_by(kept.astype(np.float64), is_wrong, 1.0)


def _fit(rows: Float64Array, is_wrong: BoolArray) -> Logistic:
    return fit_logistic(rows, is_wrong.astype(np.float64), strength=_STRENGTH)
