"""Rules that say which prompts leave the edge, side by side on the same labelled answers.

What a rule fits, it fits on other folds than it is judged on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from fleet_protocol.prompt_features import prompt_features
from models.difficulty.assess import assign_folds
from models.difficulty.fit import BoolArray, Float64Array, Folds, left_out, sigmoid
from models.routing.answers import LabelledAnswer
from models.routing.calibrate import FOLDS, SEED, Kept, kept_by, signs_of, threshold, values_of
from models.routing.curves import Curve, measure_curve

NAIVE_CHARS: Final = 512
"""What a rule of thumb takes for a long prompt."""
_STRENGTH: Final = 10.0
_SURELY: Final = 50.0
"""Log-odds of what is not to be kept at all."""


class RuleReport(msgspec.Struct, frozen=True, kw_only=True):
    """One rule.

    Attributes:
        curve: Over all shares that it could send away.
        kept: At the threshold that allows the stated share of wrong answers; it was chosen on
            other folds.
        right_in_all: Share of all prompts answered rightly then, by the edge or the cloud.
        tokens_in_vain: Share of the tokens generated at the edge that belong to answers it then
            sends away: paid twice. 0 for a rule that needs the prompt alone.
        waited_tokens: Mean tokens that such a prompt waited for before it left.
    """

    curve: Curve
    kept: Kept
    right_in_all: float
    tokens_in_vain: float
    waited_tokens: float


class RouterReport(msgspec.Struct, frozen=True, kw_only=True):
    """All rules on one set of answers.

    Attributes:
        right_share: Of the edge model.
        strong_right_share: Of the model in the cloud.
    """

    answers: int
    right_share: float
    strong_right_share: float
    error_rate: float
    rules: dict[str, RuleReport]


def compare_rules(answers: Sequence[LabelledAnswer], *, error_rate: float) -> RouterReport:
    """Judge every rule for which the answers have what it needs."""
    is_right = np.array([answer.right for answer in answers], np.bool_)
    there = np.array([answer.strong_right for answer in answers], np.bool_)
    prompts = [answer.prompt for answer in answers]
    folds = assign_folds(prompts, ~is_right, folds=FOLDS, seed=SEED)
    features = np.array([prompt_features(prompt) for prompt in prompts], np.float64)
    scores = {
        "random": np.random.default_rng(SEED).random(len(answers)),
        f"length >= {NAIVE_CHARS}": np.array([len(text) >= NAIVE_CHARS for text in prompts], float),
        "prompt": _fit_left_out(features, ~is_right, folds),
    }
    if all(answer.signs is not None for answer in answers):
        signs, _ = signs_of(answers)
        refused = np.array([answer.refused for answer in answers], np.bool_)
        are_values = np.zeros_like(refused)
        are_values[~refused] = values_of([answer for answer in answers if not answer.refused])
        both = np.hstack([signs, features])
        parts = [are_values & ~refused, ~are_values & ~refused]
        scores["confidence"] = _after(signs, ~is_right, folds, parts=parts)
        scores["both"] = _after(both, ~is_right, folds, parts=parts)
    tokens = np.array([answer.tokens for answer in answers], np.float64)
    rules = {}
    for name, score in scores.items():
        spent = tokens if name in {"confidence", "both"} else np.zeros(len(answers))
        rules[name] = _judge(score, is_right, there, folds, spent, error_rate=error_rate)
    return RouterReport(
        answers=len(answers),
        right_share=round(float(is_right.mean()), 4),
        strong_right_share=round(float(there.mean()), 4),
        error_rate=error_rate,
        rules=rules,
    )


def _fit_left_out(rows: Float64Array, is_wrong: BoolArray, folds: Folds) -> Float64Array:
    return left_out(rows, is_wrong.astype(np.float64), folds, strengths=[_STRENGTH])


def _after(
    rows: Float64Array, is_wrong: BoolArray, folds: Folds, *, parts: Sequence[BoolArray]
) -> Float64Array:
    """Return log-odds of a wrong answer, each part fitted by itself.

    What is in none of them, a refusal, leaves before all others.
    """
    found = np.full(len(rows), _SURELY)
    for part in parts:
        if part.any():
            found[part] = _fit_left_out(rows[part], is_wrong[part], folds[part])
    return found


def _judge(
    scores: Float64Array,
    is_right: BoolArray,
    there: BoolArray,
    folds: Folds,
    spent: Float64Array,
    *,
    error_rate: float,
) -> RuleReport:
    trusted = 1.0 - sigmoid(scores)
    keeps = np.zeros(len(scores), np.bool_)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        least = threshold(trusted[~out], ~is_right[~out], error_rate=error_rate)
        keeps[out] = trusted[out] >= least
    kept = kept_by(keeps.astype(np.float64), ~is_right, 1.0)
    right = np.where(keeps, is_right, there)
    return RuleReport(
        curve=measure_curve(scores, is_right, there, seed=SEED),
        kept=Kept(*(round(share, 4) for share in kept)),
        right_in_all=round(float(right.mean()), 4),
        tokens_in_vain=round(float(spent[~keeps].sum() / max(1.0, spent.sum())), 4),
        waited_tokens=round(float(spent[~keeps].mean()) if (~keeps).any() else 0.0, 1),
    )
