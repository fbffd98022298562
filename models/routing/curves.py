"""What a rule that ranks prompts is worth: how much of the strong model's lead each share buys.

Prompts go to the strong model by falling score. With P(c) the share of right answers when a share
c of the prompts went there, the performance gap recovered is (P(c) - P(0)) / (P(1) - P(0)).
Source: RouteLLM, arXiv 2406.18665.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from models.difficulty.assess import auc
from models.difficulty.fit import BoolArray, Float64Array

RESAMPLES: Final = 1000
_INTERVAL_PERCENT: Final = (2.5, 97.5)
_DIGITS: Final = 4
_ROUNDING: Final = 1e-9


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A figure and the 95 % interval of it over resampled prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One rule's figures.

    Attributes:
        apgr: Mean performance gap recovered over all shares; 0.5 for a rule that knows nothing.
        cpt_50: Least share of prompts for the strong model that recovers half of the gap.
        cpt_80: The same for four fifths of it.
        auc: How often a prompt answered wrongly scores above one answered rightly.
    """

    apgr: Figure
    cpt_50: Figure
    cpt_80: Figure
    auc: Figure


def measure_curve(
    scores: Float64Array, is_right: BoolArray, is_right_there: BoolArray, *, seed: int
) -> Curve:
    """Return a rule's figures, with intervals by bootstrap over the prompts.

    Args:
        scores: Of each prompt; the highest go to the strong model first.
        is_right: Whether the edge answers it rightly.
        is_right_there: Whether the strong model does.
        seed: Of the resampling.
    """
    random = np.random.default_rng(seed)
    count = len(scores)
    draws = [random.integers(0, count, count) for _ in range(RESAMPLES)]
    taken = [_figures(scores[at], is_right[at], is_right_there[at]) for at in draws]
    whole = _figures(scores, is_right, is_right_there)
    found = []
    for place, value in enumerate(whole):
        low, high = np.percentile([draw[place] for draw in taken], _INTERVAL_PERCENT)
        found.append(
            Figure(
                value=round(value, _DIGITS),
                low=round(float(low), _DIGITS),
                high=round(float(high), _DIGITS),
            )
        )
    apgr, cpt_50, cpt_80, area = found
    return Curve(apgr=apgr, cpt_50=cpt_50, cpt_80=cpt_80, auc=area)


def gap_recovered(
    scores: Float64Array, is_right: BoolArray, is_right_there: BoolArray
) -> Float64Array:
    """Return the share of the gap that is recovered when 0, 1, ... all prompts went there.

    Prompts of one score go together: within them, each stands for their mean. All zeros where the
    strong model leads by nothing.
    """
    gain = is_right_there.astype(np.float64) - is_right
    if gain.sum() <= 0:
        return np.zeros(len(scores) + 1)
    _, place, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=gain) / counts
    gained = np.cumsum(np.repeat(means, counts)) / gain.sum()
    return np.asarray(np.concatenate([[0.0], gained]))


def _figures(
    scores: Float64Array, is_right: BoolArray, is_right_there: BoolArray
) -> tuple[float, float, float, float]:
    recovered = gap_recovered(scores, is_right, is_right_there)
    steps = len(recovered) - 1
    return (
        float((recovered[1:] + recovered[:-1]).mean() / 2),
        _least_share(recovered, 0.5) / steps,
        _least_share(recovered, 0.8) / steps,
        auc(scores, ~is_right),
    )


def _least_share(recovered: Float64Array, wanted: float) -> int:
    enough = np.flatnonzero(recovered >= wanted - _ROUNDING)
    return int(enough[0]) if len(enough) else len(recovered) - 1
