"""From labelled answers to a model's own numbers: a confidence that is a probability, a threshold.

The threshold is the lowest one at which, counting one wrong answer more than was seen, no more
than the stated share of the kept answers is wrong: the correction for a finite sample of conformal
risk control (arXiv 2208.02814).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from fleet_protocol.manifest import Calibration, DoubtWeights, Routing
from models.difficulty.assess import assign_folds, auc
from models.difficulty.build import FitSettings, fit_difficulty
from models.difficulty.data import Labelled
from models.difficulty.fit import BoolArray, Float64Array, Folds, Logistic, fit_logistic, sigmoid
from models.progress import Progress
from models.routing.answers import LEAST_OF_EACH, LabelledAnswer, LabelledAnswersError

FOLDS: Final = 5
SEED: Final = 7
_STRENGTH: Final = 1.0
_DIGITS: Final = 4
_RIGHT_LOST: Final = 0.01
"""Share of the right answers that may be lost to what their prompts look like."""
_WRONG_SENT: Final = 0.8
"""Least share of wrong answers among prompts that are not even tried."""


_Fitted: TypeAlias = tuple[Logistic, Logistic | None]
"""For words, or all answers; and for values, if they are weighed apart."""


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


def calibrate(
    answers: Sequence[LabelledAnswer], *, error_rate: float, model: str, progress: Progress
) -> Routing:
    """Fit on all answers; what is said of its worth is from answers left out of the fit.

    Refusals are left aside: they leave whatever the thresholds are.

    Args:
        answers: With signs; raises LabelledAnswersError where some have none.
        error_rate: Wrong answers allowed among those that are kept, 0..1.
        model: Whose answers they are.
        progress: Told what is done.
    """
    answers = [answer for answer in answers if not answer.refused]
    labelled = [Labelled(prompt=answer.prompt, is_right=answer.right) for answer in answers]
    settings = FitSettings(name=f"{model}-difficulty", model=model, folds=FOLDS, seed=SEED)
    hardness = fit_difficulty(labelled, settings, progress)
    rows, is_wrong = signs_of(answers)
    are_values = values_of(answers)
    too_hard = hardest(hardness.left_out, is_wrong)
    is_tried = hardness.left_out <= too_hard
    tried = [answer for answer, stays in zip(answers, is_tried, strict=True) if stays]
    rows, still_wrong = rows[is_tried], is_wrong[is_tried]
    are_values = are_values[is_tried]
    prompts = [answer.prompt for answer in tried]
    folds = assign_folds(prompts, still_wrong, folds=FOLDS, seed=SEED)
    words, values = fitted = _fit(rows, still_wrong, are_values)
    trusted = 1.0 - sigmoid(_log_odds(fitted, rows, are_values))
    left_out, kept = _left_out(rows, still_wrong, are_values, folds, error_rate=error_rate)
    weights = _weights(words)
    right = int((~is_wrong).sum())
    return Routing(
        min_confidence=round(threshold(trusted, still_wrong, error_rate=error_rate), _DIGITS),
        calibration=Calibration(
            bias=weights.bias,
            mean=weights.mean,
            worst=weights.worst,
            repeated=weights.repeated,
            values=None if values is None else _weights(values),
            answers=len(tried),
            right_share=round(1.0 - float(still_wrong.mean()), _DIGITS),
            error_rate=error_rate,
            kept_right_share=round(kept.of_right * int((~still_wrong).sum()) / right, _DIGITS),
            kept_wrong_share=round(kept.wrong, _DIGITS),
            auc=round(auc(left_out, still_wrong), _DIGITS),
        ),
        difficulty=None if too_hard == 1.0 else hardness.manifest,
        max_difficulty=too_hard,
    )


def hardest(hardness: Float64Array, is_wrong: BoolArray) -> float:
    """Return the difficulty up to which prompts are tried; 1.0: all are.

    The lowest one that sends hardly any prompt away that is answered rightly; none at all where it
    would not send many more of those that are answered wrongly.

    Args:
        hardness: Probability of a wrong answer, by a fit that has not seen the prompt.
        is_wrong: Whether it is.
    """
    most = float(np.quantile(hardness[~is_wrong], 1.0 - _RIGHT_LOST, method="higher"))
    most = round(most, _DIGITS)
    sent = hardness > most
    return most if sent.any() and is_wrong[sent].mean() >= _WRONG_SENT else 1.0


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


def values_of(answers: Sequence[LabelledAnswer]) -> BoolArray:
    """Return which answers are values; none, where too few of them or of the others would be left.

    Nor are they where it is not known of every answer.
    """
    found = np.array([answer.value is True for answer in answers], np.bool_)
    right = np.array([answer.right for answer in answers], np.bool_)
    counts = [int((part & same).sum()) for part in (found, ~found) for same in (right, ~right)]
    is_known = all(answer.value is not None for answer in answers)
    return found if is_known and min(counts) >= LEAST_OF_EACH else np.zeros_like(found)


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
    are_values: BoolArray,
    folds: Folds,
    *,
    error_rate: float,
) -> tuple[Float64Array, Kept]:
    """Return log-odds of answers left out, and what thresholds chosen without them keep of them."""
    log_odds = np.zeros(len(rows))
    kept = np.zeros(len(rows), np.bool_)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        fitted = _fit(rows[~out], is_wrong[~out], are_values[~out])
        found = _log_odds(fitted, rows, are_values)
        least = threshold(1.0 - sigmoid(found[~out]), is_wrong[~out], error_rate=error_rate)
        log_odds[out] = found[out]
        kept[out] = 1.0 - sigmoid(log_odds[out]) >= least
    return log_odds, kept_by(kept.astype(np.float64), is_wrong, 1.0)


def _fit(rows: Float64Array, is_wrong: BoolArray, are_values: BoolArray) -> _Fitted:
    if not are_values.any():
        return _fit_doubt(rows, is_wrong), None
    words = _fit_doubt(rows[~are_values], is_wrong[~are_values])
    return words, _fit_doubt(rows[are_values], is_wrong[are_values])


def _fit_doubt(rows: Float64Array, is_wrong: BoolArray) -> Logistic:
    """Fit so that no sign lowers doubt: one that would is left out, the strongest first."""
    labels, used = is_wrong.astype(np.float64), rows
    while True:
        fitted = fit_logistic(used, labels, strength=_STRENGTH)
        lowest = int(fitted.weights.argmin())
        if fitted.weights[lowest] >= 0:
            return fitted
        used = used.copy()
        used[:, lowest] = 0.0


def _log_odds(fitted: _Fitted, rows: Float64Array, are_values: BoolArray) -> Float64Array:
    words, values = fitted
    found = words.log_odds(rows)
    return found if values is None else np.where(are_values, values.log_odds(rows), found)


def _weights(fitted: Logistic) -> DoubtWeights:
    weights = fitted.weights / fitted.scales
    mean, worst, repeated = (round(float(weight), _DIGITS) for weight in weights)
    bias = round(fitted.bias - float(weights @ fitted.means), _DIGITS)
    return DoubtWeights(bias=bias, mean=mean, worst=worst, repeated=repeated)
