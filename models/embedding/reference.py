"""The encoder's forward pass in plain numpy: what the graph is measured against.

Written from the architecture's definition, not from the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import Float32Array
from models.embedding.checkpoint import (
    ATTENTION_NORM,
    ATTENTION_OUT,
    DOWN,
    DOWN_NORM,
    EMBEDDING,
    EMBEDDING_NORM,
    KEY,
    POSITIONS,
    QUERY,
    SEGMENTS,
    UP,
    VALUE,
    EncoderFolder,
    layer_part,
)

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: within 1.5e-7 of erf.
_ERF_SLOPE: Final = np.float32(0.3275911)
_ERF_TERMS: Final = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

Places: TypeAlias = npt.NDArray[np.intp]


class ReferenceEncoder:
    """The unquantised encoder; holds its weights."""

    def __init__(self, folder: EncoderFolder) -> None:
        self._folder = folder
        self._weights: dict[str, Float32Array] = {}

    def embed(self, texts: Sequence[Sequence[int]]) -> Float32Array:
        """Return the embeddings [texts, hidden], of length 1, of each text's tokens."""
        shape = self._folder.shape
        ends = np.cumsum([len(text) for text in texts])[:-1]
        ids = np.concatenate([np.asarray(text) for text in texts])
        places = np.concatenate([np.arange(len(text)) for text in texts])
        hidden = (
            self._weight(EMBEDDING)[ids]
            + self._weight(POSITIONS)[places]
            + self._weight(SEGMENTS)[0]
        )
        hidden = self._norm(hidden, EMBEDDING_NORM)
        for layer in range(shape.layers):
            attended = self._attend(hidden, layer, ends)
            hidden = self._norm(hidden + attended, layer_part(layer, ATTENTION_NORM))
            fed = self._product(_gelu(self._product(hidden, layer, UP)), layer, DOWN)
            hidden = self._norm(hidden + fed, layer_part(layer, DOWN_NORM))
        means = np.stack([text.mean(axis=0) for text in np.split(hidden, ends)])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    def _attend(self, hidden: Float32Array, layer: int, ends: Places) -> Float32Array:
        """Every token attends to every token of its own text, head by head."""
        parts = [np.split(self._product(hidden, layer, part), ends) for part in (QUERY, KEY, VALUE)]
        mixed = [self._mix(*text) for text in zip(*parts, strict=True)]
        return self._product(np.concatenate(mixed), layer, ATTENTION_OUT)

    def _mix(self, query: Float32Array, key: Float32Array, value: Float32Array) -> Float32Array:
        """Return, for one text, each token's values of all tokens, mixed by likeness."""
        heads = self._folder.shape.heads
        tokens, width = query.shape
        left, right, values = (
            part.reshape(tokens, heads, -1).swapaxes(0, 1) for part in (query, key, value)
        )
        scores = left @ right.swapaxes(1, 2) / np.float32((width // heads) ** 0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ values
        return np.asarray(mixed.swapaxes(0, 1).reshape(tokens, width))

    def _product(self, left: Float32Array, layer: int, part: str) -> Float32Array:
        at = layer_part(layer, part)
        return np.asarray(left @ self._weight(f"{at}.weight").T + self._weight(f"{at}.bias"))

    def _norm(self, hidden: Float32Array, name: str) -> Float32Array:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        variance = np.mean(centred**2, axis=-1, keepdims=True)
        unit = centred / np.sqrt(variance + np.float32(self._folder.shape.norm_epsilon))
        return np.asarray(unit * self._weight(f"{name}.weight") + self._weight(f"{name}.bias"))

    def _weight(self, name: str) -> Float32Array:
        if name not in self._weights:
            self._weights[name] = self._folder.weight(name)
        return self._weights[name]


def _gelu(values: Float32Array) -> Float32Array:
    """Return x times the normal distribution's share below x. Source: arXiv 1606.08415."""
    at = np.abs(values) / np.float32(2**0.5)
    step = 1 / (1 + _ERF_SLOPE * at)
    series = np.zeros_like(step)
    for term in _ERF_TERMS:
        series = (series + np.float32(term)) * step
    erf = np.copysign(1 - series * np.exp(-(at**2)), values)
    return np.asarray(values * (1 + erf) / 2)
