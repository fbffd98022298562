"""Rotary position embeddings: how fast each pair of a head's channels turns."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Float64Array: TypeAlias = npt.NDArray[np.float64]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """The rotary embedding of a layer. Source: arXiv 2104.09864.

    Attributes:
        base: Of the frequencies.
        divisors: By what the frequency of each pair of channels is divided, to stretch a short
            training context; empty: by 1.
    """

    base: float = 10_000.0
    divisors: tuple[float, ...] = ()

    def angles(self, head_dim: int, positions: int) -> Float64Array:
        """Return the angles [positions, head_dim / 2], in radians."""
        return np.outer(np.arange(positions), self._frequencies(head_dim))

    def stretched(self, head_dim: int, scaling: dict[str, Any]) -> Rope:
        """Return it with a configuration's `rope_scaling`.

        Raises:
            KeyError, TypeError, ValueError: Of an unknown kind, or incomplete.
        """
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "default":
            return self
        pairs = head_dim // 2
        if kind == "linear":
            return Rope(base=self.base, divisors=(float(scaling["factor"]),) * pairs)
        if kind != "llama3":
            raise ValueError(f"rotary scaling: {kind!r} is not known")
        return Rope(base=self.base, divisors=_llama3(self._frequencies(head_dim), scaling))

    def _frequencies(self, head_dim: int) -> Float64Array:
        exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        frequencies: Float64Array = self.base**-exponents
        return frequencies / np.array(self.divisors) if self.divisors else frequencies


def _llama3(frequencies: Float64Array, scaling: dict[str, Any]) -> tuple[float, ...]:
    """Slow pairs are slowed by `factor`, fast ones kept, those between blended.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    factor, low = float(scaling["factor"]), float(scaling["low_freq_factor"])
    high = float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple((1 / (kept + (1 - kept) / factor)).tolist())
