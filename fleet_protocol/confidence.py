"""How far an answer of the edge model may be trusted, from what generating it has shown.

Two signs of doubt and one of a loop: how unlikely the chosen tokens were on the mean, how unlikely
the worst of them was, and how much the text repeats itself, as a looping model is *sure* of what it
repeats. Values (JSON, a number) and words are weighed apart where a model's calibration does so:
most tokens of a value are its form, and certain, so that a mean that is not quite nothing says
more of it than of a sentence. The factory fits what they say about one model
(`manifest.Calibration`), a worker computes with it. Entropies, the lead over the second best token,
features of the prompt and whether a second, sampled answer is the same were measured beside them,
and told the default model's right answers from its wrong ones no better.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp, sqrt
from typing import NamedTuple

from fleet_protocol.manifest import Calibration, DoubtWeights

SHINGLE_CHARS = 12
"""Length of the text pieces whose repetition is counted; shorter ones repeat in any language."""

KIND_CHARS = 2
"""So many, blanks before them aside, tell values from words: a minus alone may be a dash."""

NOVELTY_EXPECTED = 0.6
"""Share of different shingles below which an answer counts as repeating itself.

Plain prose has more than 0.9; a JSON list of objects with the same keys about 0.6.
"""

_VALUE = re.compile(r"\s*(?:[\[{]|[-+\u2212]?\d)")
_LARGEST_ODDS = 700.0
"""The exponential of more is no number any longer."""
_HALF_CHARS = SHINGLE_CHARS // 2
_SEARCHED_CHARS = 512
"""Longest text that is searched for its own pieces: that is quick, but grows with the square."""


class Signs(NamedTuple):
    """What is known of an answer.

    Attributes:
        mean: Root of the mean of -log p over the tokens that the model chose, in nats.
        worst: Root of the largest -log p.
        repeated: 0 for a text that says nothing twice, up to 1 for one that only repeats itself.
    """

    mean: float
    worst: float
    repeated: float


def read_signs(text: str, logprobs: Sequence[float]) -> Signs:
    """Return the signs of an answer and its tokens' natural log-probabilities.

    Where the model had nothing to choose, it cannot have been wrong.
    """
    repeated = 1.0 - min(1.0, novelty(text) / NOVELTY_EXPECTED)
    if not logprobs:
        return Signs(0.0, 0.0, repeated)
    mean = max(0.0, -sum(logprobs) / len(logprobs))
    return Signs(sqrt(mean), sqrt(max(0.0, -min(logprobs))), repeated)


def confidence(
    text: str, logprobs: Sequence[float], calibration: Calibration | None = None
) -> float:
    """Return the confidence in an answer, 0..1; 0 for an empty one.

    With a calibration, the probability that it is right. Without, the geometric mean of the
    tokens' probabilities, lowered in proportion where the text repeats itself.
    """
    if not text.strip():
        return 0.0
    signs = read_signs(text, logprobs)
    if calibration is None:
        return exp(-(signs.mean**2)) * (1.0 - signs.repeated)
    return _probability_of_right(signs, _weights_for(text, calibration))


def is_value(text: str) -> bool:
    """Tell whether an answer is JSON or begins with a number; else it is words."""
    return _VALUE.match(text) is not None


def best_possible(
    surprise: float, worst: float, *, most_tokens: int, calibration: Calibration, begun: str = ""
) -> float:
    """Return a confidence that no answer which began so can exceed, however it goes on.

    Args:
        surprise: Sum of -log p over the tokens so far, in nats.
        worst: The largest -log p so far.
        most_tokens: That the answer can come to have.
        calibration: One that `may_bound`.
        begun: Its text so far, or the first characters of that.
    """
    signs = Signs(sqrt(max(0.0, surprise) / most_tokens), sqrt(max(0.0, worst)), 0.0)
    if calibration.values is None or len(begun.lstrip()) >= KIND_CHARS:
        return _probability_of_right(signs, _weights_for(begun, calibration))
    return max(
        _probability_of_right(signs, calibration),
        _probability_of_right(signs, calibration.values),
    )


def log_odds_of_wrong(signs: Signs, weights: Calibration | DoubtWeights) -> float:
    """Return the natural logarithm of P(wrong) / P(right)."""
    return (
        weights.bias
        + weights.mean * signs.mean
        + weights.worst * signs.worst
        + weights.repeated * signs.repeated
    )


def _weights_for(text: str, calibration: Calibration) -> Calibration | DoubtWeights:
    if calibration.values is None or not is_value(text):
        return calibration
    return calibration.values


def _probability_of_right(signs: Signs, weights: Calibration | DoubtWeights) -> float:
    return 1.0 / (1.0 + exp(min(_LARGEST_ODDS, log_odds_of_wrong(signs, weights))))


def novelty(text: str) -> float:
    """Return the share of different pieces among all pieces of `SHINGLE_CHARS` characters, 0..1.

    A sentence said five times has about 0.2. Texts too short to say something twice have 1.
    """
    count = len(text) - SHINGLE_CHARS + 1
    if count <= SHINGLE_CHARS:
        return 1.0
    if len(text) > _SEARCHED_CHARS:
        return len({text[at : at + SHINGLE_CHARS] for at in range(count)}) / count
    return _new_pieces(text, count) / count


def _new_pieces(text: str, count: int) -> int:
    """Return how many of the pieces occur nowhere before: the number of different ones.

    Taken in strides, as each answer passes here: where half a piece is new, so is every piece
    around it; where a piece is not, what follows often is not either.
    """
    new = at = 0
    find = text.find
    while at < count:
        half = at + _HALF_CHARS
        if find(text[half : at + SHINGLE_CHARS]) == half:
            stride = _HALF_CHARS + 1
            new += stride
        else:
            first = find(text[at : at + SHINGLE_CHARS])
            stride = 1 if first == at else _same_chars(text, first, at) - SHINGLE_CHARS + 1
            new += first == at
        at += stride
    return new - (at - count)  # The last stride may have gone beyond the end.


def _same_chars(text: str, first: int, at: int) -> int:
    """Return for how many characters the text goes on at `at` as it did at `first`."""
    least, most = SHINGLE_CHARS, len(text) - at
    middle = most  # First of all: a model that loops does so to the end.
    while least < most:
        if text.startswith(text[at : at + middle], first):
            least = middle
        else:
            most = middle - 1
        middle = (least + most + 1) // 2
    return least
