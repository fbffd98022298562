"""The decoder's forward pass in plain numpy: what the graph is measured against.

Written from the architecture's definition, not from the graph, one layer's weights at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias, assert_never

import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Activation,
    Checkpoint,
    Float32Array,
    layer_weight,
)
from models.graphs.quantize import dequantize_blocks, quantize_blocks

Observe: TypeAlias = Callable[[str, Float32Array, Float32Array], None]
"""Told the canonical name of a layer's matrix, its input [tokens, inputs], and the matrix."""

_MASKED: Final = np.float32(-np.inf)
# Source: arXiv 1606.08415, the approximation with tanh.
_GELU_SLOPE: Final = np.float32((2 / np.pi) ** 0.5)
_GELU_CUBE: Final = np.float32(0.044715)


def reference_logits(checkpoint: Checkpoint, token_ids: Sequence[int]) -> Float32Array:
    """Return logits [tokens, vocab] of every position of one sequence."""
    head = checkpoint.weight(EMBEDDING if checkpoint.shape.ties_embedding else HEAD)
    return np.asarray(reference_hidden(checkpoint, token_ids) @ head.T)


def reference_hidden(
    checkpoint: Checkpoint, token_ids: Sequence[int], *, observe: Observe | None = None
) -> Float32Array:
    """Return what the head reads: [tokens, hidden] after the last norm."""
    shape = checkpoint.shape
    *_, hidden = residual_stream(checkpoint, token_ids, observe=observe)
    return _rms_norm(hidden, checkpoint.weight(FINAL_NORM), shape.norm_epsilon)


def residual_stream(
    checkpoint: Checkpoint, token_ids: Sequence[int], *, observe: Observe | None = None
) -> Iterator[Float32Array]:
    """Yield what each layer reads, and what the last one leaves: [tokens, hidden] each."""
    shape = checkpoint.shape
    hidden = checkpoint.weight(EMBEDDING)[np.asarray(token_ids)]
    hidden = hidden * np.float32(shape.embedding_scale)
    for index in range(shape.layers):
        yield hidden
        layer = _Layer(checkpoint, index, observe)
        attended = _attention(layer.norm(hidden, "attention_norm"), layer)
        hidden = hidden + layer.norm_sandwich(attended, "post_attention_norm")
        fed = _feed_forward(layer.norm(hidden, "feed_forward_norm"), layer)
        hidden = hidden + layer.norm_sandwich(fed, "post_feed_forward_norm")
    yield hidden


class _Layer:
    """One layer's weights; tells an observer about every product with them."""

    def __init__(self, checkpoint: Checkpoint, index: int, observe: Observe | None) -> None:
        self._checkpoint = checkpoint
        self._observe = observe
        self.index = index
        self.shape = checkpoint.shape

    def weight(self, name: str) -> Float32Array:
        return self._checkpoint.weight(layer_weight(self.index, name))

    def norm(self, hidden: Float32Array, name: str) -> Float32Array:
        return _rms_norm(hidden, self.weight(name), self.shape.norm_epsilon)

    def norm_sandwich(self, branch: Float32Array, name: str) -> Float32Array:
        return self.norm(branch, name) if self.shape.has_sandwich_norms else branch

    def product(self, left: Float32Array, name: str) -> Float32Array:
        matrix = self.weight(name)
        if self._observe is not None:
            self._observe(layer_weight(self.index, name), left, matrix)
        return np.asarray(left @ matrix.T)


class RoundedCheckpoint:
    """The checkpoint as the quantised graph holds it: its matrices moved to their 8-bit levels."""

    def __init__(self, checkpoint: Checkpoint, *, block: int) -> None:
        self._checkpoint = checkpoint
        self._block = block
        self.shape = checkpoint.shape

    def weight(self, name: str) -> Float32Array:
        """Return one weight, rounded; norms and biases are kept as they are."""
        weight = self._checkpoint.weight(name)
        if weight.ndim == 1:
            return weight
        return dequantize_blocks(quantize_blocks(weight, block=self._block))


def _rms_norm(hidden: Float32Array, gain: Float32Array, epsilon: float) -> Float32Array:
    mean_square = np.mean(hidden**2, axis=-1, keepdims=True)
    return np.asarray(hidden / np.sqrt(mean_square + np.float32(epsilon)) * gain)


def _attention(normed: Float32Array, layer: _Layer) -> Float32Array:
    """Causal attention of groups of query heads that share a key-value head."""
    shape, tokens = layer.shape, normed.shape[0]
    query = _turned(_heads(normed, layer, "q"), layer)
    key = _turned(_heads(normed, layer, "k"), layer)
    value = _heads(normed, layer, "v")
    group = shape.heads // shape.kv_heads
    key, value = key.repeat(group, axis=0), value.repeat(group, axis=0)
    scores = query @ key.swapaxes(1, 2) * np.float32(shape.attention_scale)
    scores = np.where(_is_seen(tokens, shape.window_of(layer.index)), scores, _MASKED)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = scores / scores.sum(axis=-1, keepdims=True) @ value
    return layer.product(mixed.swapaxes(0, 1).reshape(tokens, -1), "o")


def _is_seen(tokens: int, window: int | None) -> npt.NDArray[np.bool_]:
    """Return which key (column) each query (row) sees: the past, as far as the window goes."""
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    return (distance >= 0) & (distance < (window or tokens))


def _heads(normed: Float32Array, layer: _Layer, name: str) -> Float32Array:
    """Project to q, k or v: [heads, tokens, dim], biased and normed where the shape says so."""
    packed = layer.product(normed, name)
    if layer.shape.has_qkv_bias:
        packed = packed + layer.weight(f"{name}_bias")
    heads = packed.reshape(len(packed), -1, layer.shape.head_dim).swapaxes(0, 1)
    has_norm = layer.shape.has_head_norms and name != "v"
    return layer.norm(heads, f"{name}_norm") if has_norm else heads


def _turned(heads: Float32Array, layer: _Layer) -> Float32Array:
    """Rotary embedding over the two halves of each head."""
    half = layer.shape.head_dim // 2
    angles = layer.shape.rope_of(layer.index).angles(layer.shape.head_dim, heads.shape[1])
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    low, high = heads[..., :half], heads[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _feed_forward(normed: Float32Array, layer: _Layer) -> Float32Array:
    gate = _bend(layer.product(normed, "gate"), layer.shape.activation)
    return layer.product(gate * layer.product(normed, "up"), "down")


def _bend(gate: Float32Array, activation: Activation) -> Float32Array:
    match activation:
        case Activation.SILU:
            return np.asarray(gate / (1 + np.exp(-gate)))
        case Activation.GELU_TANH:
            inner = _GELU_SLOPE * (gate + _GELU_CUBE * gate**3)
            return np.asarray(gate * (1 + np.tanh(inner)) / 2)
        case _:
            assert_never(activation)
