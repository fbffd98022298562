"""Choosing the next token of one row from the model's logits.

Rows are independent of each other: every request brings its own generator, so that an answer is the
same whoever shares the batch with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
Int64Array: TypeAlias = npt.NDArray[np.int64]

NUCLEUS_GUESS = 256
"""Tokens sorted at first when looking for the nucleus; it is rarely larger."""


class Choice(NamedTuple):
    """A chosen token and its natural log-probability under the model, before temperature."""

    token: int
    logprob: float


def choose_token(
    logits: Float32Array,
    *,
    temperature: float,
    top_p: float,
    generator: np.random.Generator | None,
) -> Choice:
    """Choose from logits [vocab]: the best at temperature 0, else drawn from the nucleus.

    Args:
        logits: float32 [vocab], not changed.
        temperature: 0 is greedy; the generator is not asked then.
        top_p: The smallest set of best tokens with at least this mass is drawn from.
        generator: Of this request alone; one draw is taken from it per token.

    Raises:
        ValueError: The logits hold no largest number (NaN or infinity: a broken model), or a
            temperature above 0 comes without a generator.
    """
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):
        raise ValueError("the model's logits are not numbers")
    if temperature <= 0.0:
        token = best
    elif generator is None:
        raise ValueError("sampling above temperature 0 needs a generator")
    else:
        token = draw_token(logits, temperature=temperature, top_p=top_p, generator=generator)
    return Choice(token, log_probability(logits, token))


def log_probability(logits: Float32Array, token: int) -> float:
    """Return the natural logarithm of the probability that logits [vocab] give a token."""
    peak = logits.max()
    weights = logits - peak
    np.exp(weights, out=weights)
    # Summed in pairs, 32 bits keep six digits and more.
    return float(logits[token]) - float(peak) - math.log(weights.sum())


def draw_token(
    logits: Float32Array, *, temperature: float, top_p: float, generator: np.random.Generator
) -> int:
    """Draw from softmax(logits / temperature), cut to the nucleus of mass `top_p`.

    The draw inverts the cumulated distribution, so one uniform number decides the token.
    """
    scaled = (logits - logits.max()).astype(np.float64) / temperature
    weights: Float64Array = np.exp(scaled)
    uniform = float(generator.random())
    if top_p >= 1.0:
        return _invert(weights, uniform)
    nucleus = find_nucleus(weights, top_p=top_p)
    return int(nucleus[_invert(weights[nucleus], uniform)])


def find_nucleus(weights: Float64Array, *, top_p: float) -> Int64Array:
    """Return the indices of the smallest set of heaviest weights [vocab] with mass >= top_p.

    Heaviest first; equal weights in the order of their index, so that the set is unique.
    """
    wanted = top_p * float(weights.sum())
    count = min(NUCLEUS_GUESS, weights.size)
    while True:
        order = _heaviest(weights, count)
        mass = np.cumsum(weights[order])
        if mass[-1] >= wanted or count == weights.size:
            return order[: int(np.searchsorted(mass, wanted)) + 1]
        count = min(count * 16, weights.size)


def _heaviest(weights: Float64Array, count: int) -> Int64Array:
    if count < weights.size:
        # A tie with the last one in would be cut at random: take all that weigh as much.
        limit = np.partition(weights, -count)[-count]
        chosen = np.flatnonzero(weights >= limit)
    else:
        chosen = np.arange(weights.size)
    return chosen[np.argsort(-weights[chosen], kind="stable")]


def _invert(weights: Float64Array, uniform: float) -> int:
    mass = np.cumsum(weights)
    index = int(np.searchsorted(mass, uniform * mass[-1], side="right"))
    # Rounding may push the draw past the end; the heaviest possible index is the last one.
    return min(index, weights.size - 1)
