"""The decoder's forward pass in plain numpy: what the graph is measured against.

Written from the architecture's definition, not from the graph, one layer's weights at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from models.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LAYER_NORMS,
    Checkpoint,
    Float32Array,
    LlamaShape,
    layer_weight,
)
from models.quantize import dequantize_blocks, quantize_blocks

Observe: TypeAlias = Callable[[str, Float32Array, Float32Array], None]
"""Told the canonical name of a layer's matrix, its input [tokens, inputs], and the matrix."""

_MASKED: Final = np.float32(-np.inf)


def reference_logits(checkpoint: Checkpoint, token_ids: Sequence[int]) -> Float32Array:
    """Return logits [tokens, vocab] of every position of one sequence."""
    head = checkpoint.weight(EMBEDDING if checkpoint.shape.ties_embedding else HEAD)
    return np.asarray(reference_hidden(checkpoint, token_ids) @ head.T)


def reference_hidden(
    checkpoint: Checkpoint, token_ids: Sequence[int], *, observe: Observe | None = None
) -> Float32Array:
    """Return what the head reads: [tokens, hidden] after the last norm."""
    shape = checkpoint.shape
    hidden = checkpoint.weight(EMBEDDING)[np.asarray(token_ids)]
    for index in range(shape.layers):
        layer = _Layer(checkpoint, index, observe)
        normed = _rms_norm(hidden, layer.weight("attention_norm"), shape.norm_epsilon)
        hidden = hidden + _attention(normed, layer, shape)
        normed = _rms_norm(hidden, layer.weight("feed_forward_norm"), shape.norm_epsilon)
        hidden = hidden + _feed_forward(normed, layer)
    return _rms_norm(hidden, checkpoint.weight(FINAL_NORM), shape.norm_epsilon)


class _Layer:
    """One layer's weights; tells an observer about every product with them."""

    def __init__(self, checkpoint: Checkpoint, index: int, observe: Observe | None) -> None:
        self._checkpoint = checkpoint
        self._index = index
        self._observe = observe

    def weight(self, name: str) -> Float32Array:
        return self._checkpoint.weight(layer_weight(self._index, name))

    def product(self, left: Float32Array, name: str) -> Float32Array:
        matrix = self.weight(name)
        if self._observe is not None:
            self._observe(layer_weight(self._index, name), left, matrix)
        return np.asarray(left @ matrix.T)


class RoundedCheckpoint:
    """The checkpoint as the quantised graph holds it: its matrices moved to their 8-bit levels."""

    def __init__(self, checkpoint: Checkpoint, *, block: int) -> None:
        self._checkpoint = checkpoint
        self._block = block
        self.shape = checkpoint.shape

    def weight(self, name: str) -> Float32Array:
        """Return one weight, rounded; norms are kept as they are."""
        weight = self._checkpoint.weight(name)
        if name == FINAL_NORM or name.endswith(LAYER_NORMS):
            return weight
        return dequantize_blocks(quantize_blocks(weight, block=self._block))


def _rms_norm(hidden: Float32Array, gain: Float32Array, epsilon: float) -> Float32Array:
    mean_square = np.mean(hidden**2, axis=-1, keepdims=True)
    return np.asarray(hidden / np.sqrt(mean_square + np.float32(epsilon)) * gain)


def _attention(normed: Float32Array, layer: _Layer, shape: LlamaShape) -> Float32Array:
    """Causal attention of groups of query heads that share a key-value head."""
    tokens = normed.shape[0]
    query = _rotate(_heads(layer.product(normed, "q"), shape.heads), shape)
    key = _rotate(_heads(layer.product(normed, "k"), shape.kv_heads), shape)
    value = _heads(layer.product(normed, "v"), shape.kv_heads)
    group = shape.heads // shape.kv_heads
    key, value = key.repeat(group, axis=0), value.repeat(group, axis=0)
    scores = query @ key.swapaxes(1, 2) / np.float32(shape.head_dim**0.5)
    future = np.triu(np.ones((tokens, tokens), np.bool_), k=1)
    scores = np.where(future, _MASKED, scores)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = scores / scores.sum(axis=-1, keepdims=True) @ value
    return layer.product(mixed.swapaxes(0, 1).reshape(tokens, -1), "o")


def _heads(packed: Float32Array, heads: int) -> Float32Array:
    """[tokens, heads * dim] to [heads, tokens, dim]."""
    return packed.reshape(packed.shape[0], heads, -1).swapaxes(0, 1)


def _rotate(heads: Float32Array, shape: LlamaShape) -> Float32Array:
    """Rotary embedding over the two halves of each head. Source: arXiv 2104.09864."""
    half = shape.head_dim // 2
    frequencies = shape.rope_base ** (-np.arange(half) / half)
    angles = np.outer(np.arange(heads.shape[1]), frequencies)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    low, high = heads[..., :half], heads[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _feed_forward(normed: Float32Array, layer: _Layer) -> Float32Array:
    gate = layer.product(normed, "gate")
    silu = gate / (1 + np.exp(-gate))
    return layer.product(silu * layer.product(normed, "up"), "down")
