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
from models.difficulty.build import FitSettings, fit_difficulty
from models.difficulty.data import Labelled
from models.difficulty.fit import BoolArray, Float64Array, Folds, Logistic, fit_logistic, sigmoid
from models.progress import Progress
from models.routing.answers import LabelledAnswer, LabelledAnswersError

FOLDS: Final = 5
SEED: Final = 7
_STRENGTH: Final = 1.0
_DIGITS: Final = 4
_RIGHT_LOST: Final = 0.01
"""Share of the right answers that may be lost to what their prompts look like."""
_WRONG_SENT: Final = 0.8
"""Least share of wrong answers among prompts that are not even tried."""


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
    too_hard = hardest(hardness.left_out, is_wrong)
    is_tried = hardness.left_out <= too_hard
    tried = [answer for answer, stays in zip(answers, is_tried, strict=True) if stays]
    rows, still_wrong = rows[is_tried], is_wrong[is_tried]
    prompts = [answer.prompt for answer in tried]
    folds = assign_folds(prompts, still_wrong, folds=FOLDS, seed=SEED)
    fitted = _fit(rows, still_wrong)
    weights = fitted.weights / fitted.scales
    bias = fitted.bias - float(weights @ fitted.means)
    trusted = 1.0 - sigmoid(fitted.log_odds(rows))
    left_out, kept = _left_out(rows, still_wrong, folds, error_rate=error_rate)
    mean, worst, repeated = (round(float(weight), _DIGITS) for weight in weights)
    right = int((~is_wrong).sum())
    return Routing(
        min_confidence=round(threshold(trusted, still_wrong, error_rate=error_rate), _DIGITS),
        calibration=Calibration(
            bias=round(bias, _DIGITS),
            mean=mean,
            worst=worst,
            repeated=repeated,
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
