"""A checkpoint as the graph builder sees it, whatever file it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from models.checkpoints.rope import Rope

Float32Array: TypeAlias = npt.NDArray[np.float32]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]

EMBEDDING: Final = "embedding"
"""Weight [vocab, hidden]; also the output head where `DecoderShape.ties_embedding`."""
HEAD: Final = "head"
"""Weight [vocab, hidden] of the output head of an untied checkpoint."""
FINAL_NORM: Final = "final_norm"
"""Weight [hidden]."""
LAYER_NORMS: Final = ("attention_norm", "feed_forward_norm")
"""Gains [hidden] of a layer, read before its two halves.

Every gain is what the normed input is multiplied by: a format that stores it less one adds one.
"""
SANDWICH_NORMS: Final = ("post_attention_norm", "post_feed_forward_norm")
"""Gains [hidden] that a layer's halves are normed with before they join the residual stream."""
HEAD_NORMS: Final = ("q_norm", "k_norm")
"""Gains [head_dim] that each head of q and k is normed with, before the rotary embedding."""
LAYER_BIASES: Final = ("q_bias", "k_bias", "v_bias")
"""Vectors [outputs] added to q, k and v."""
LAYER_MATRICES: Final = ("q", "k", "v", "o", "gate", "up", "down")
"""Weights [outputs, inputs] of a layer; q and k for a rotary embedding of two halves."""


def layer_weight(layer: int, name: str) -> str:
    """Return the canonical name of a weight of a layer, counted from 0."""
    return f"layers.{layer}.{name}"


class Activation(StrEnum):
    """What bends the gate of the feed-forward block; `GELU_TANH` is GELU's tanh approximation."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class DecoderShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a decoder of the Llama family, and by what it differs from the first Llama.

    Attributes:
        hidden: Width of the residual stream.
        feed_forward: Width inside the gated feed-forward block.
        rope: The rotary embedding; it turns the whole head.
        ties_embedding: The output head is the embedding matrix.
        attention_scale: What products of queries and keys are multiplied by.
        embedding_scale: What a looked-up embedding is multiplied by.
        window_tokens: How many tokens, its own included, a token sees in the `window_layers`.
        window_layers: Layers with a sliding window, counted from 0, in order.
        window_rope: Their rotary embedding; None: the same as everywhere.
    """

    layers: Annotated[int, msgspec.Meta(ge=1)]
    hidden: Annotated[int, msgspec.Meta(ge=1)]
    heads: Annotated[int, msgspec.Meta(ge=1)]
    kv_heads: Annotated[int, msgspec.Meta(ge=1)]
    head_dim: Annotated[int, msgspec.Meta(ge=2)]
    feed_forward: Annotated[int, msgspec.Meta(ge=1)]
    vocab: Annotated[int, msgspec.Meta(ge=1)]
    context_tokens: Annotated[int, msgspec.Meta(ge=1)]
    norm_epsilon: float
    rope: Rope
    ties_embedding: bool
    attention_scale: float
    embedding_scale: float = 1.0
    activation: Activation = Activation.SILU
    has_qkv_bias: bool = False
    has_head_norms: bool = False
    has_sandwich_norms: bool = False
    window_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    window_layers: tuple[int, ...] = ()
    window_rope: Rope | None = None

    def parameters(self) -> int:
        """Return the number of weights, the head counted once where it is tied."""
        return sum(math.prod(size) for size in self.sizes().values())

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the size of every weight by its canonical name."""
        sizes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden)}
        sizes[FINAL_NORM] = (self.hidden,)
        if not self.ties_embedding:
            sizes[HEAD] = (self.vocab, self.hidden)
        of_layer = self._layer_sizes()
        for layer in range(self.layers):
            sizes |= {layer_weight(layer, name): size for name, size in of_layer.items()}
        return sizes

    def with_layers(self, keep: Sequence[int]) -> DecoderShape:
        """Return it with only these layers, counted anew from 0."""
        return msgspec.structs.replace(
            self,
            layers=len(keep),
            window_layers=tuple(n for n, old in enumerate(keep) if old in self.window_layers),
        )

    def window_of(self, layer: int) -> int | None:
        """Return how many tokens, its own included, a token sees in a layer; None: all."""
        return self.window_tokens if layer in self.window_layers else None

    def rope_of(self, layer: int) -> Rope:
        """Return a layer's rotary embedding."""
        return (self.window_rope if layer in self.window_layers else None) or self.rope

    def _layer_sizes(self) -> dict[str, tuple[int, ...]]:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes: dict[str, tuple[int, ...]] = dict.fromkeys(LAYER_NORMS, (self.hidden,))
        if self.has_sandwich_norms:
            sizes |= dict.fromkeys(SANDWICH_NORMS, (self.hidden,))
        if self.has_head_norms:
            sizes |= dict.fromkeys(HEAD_NORMS, (self.head_dim,))
        if self.has_qkv_bias:
            sizes |= dict(zip(LAYER_BIASES, ((query,), (key,), (key,)), strict=True))
        return sizes | {
            "q": (query, self.hidden),
            "k": (key, self.hidden),
            "v": (key, self.hidden),
            "o": (self.hidden, query),
            "gate": (self.feed_forward, self.hidden),
            "up": (self.feed_forward, self.hidden),
            "down": (self.hidden, self.feed_forward),
        }


class Checkpoint(Protocol):
    """Weights by canonical name, dequantised and read one at a time to save memory."""

    @property
    def shape(self) -> DecoderShape:
        """Its sizes."""
        ...

    def weight(self, name: str) -> Float32Array:
        """Return one weight.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        ...


class KeptWeights:
    """A checkpoint that reads each weight once and keeps it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._weights: dict[str, Float32Array] = {}

    @property
    def shape(self) -> DecoderShape:
        """Its sizes."""
        return self._checkpoint.shape

    def weight(self, name: str) -> Float32Array:
        """Return one weight; the caller must not change it."""
        if name not in self._weights:
            self._weights[name] = self._checkpoint.weight(name)
        return self._weights[name]


class TextParts(msgspec.Struct, frozen=True, kw_only=True):
    """What turns a conversation into tokens.

    Attributes:
        tokenizer_json: A `tokenizers` JSON file's text.
        chat_template: Jinja text; rendered with `messages` and `add_generation_prompt`.
        stop_tokens: Token ids that end an answer.
    """

    tokenizer_json: str
    chat_template: str
    stop_tokens: tuple[int, ...]


class SourceModel(Protocol):
    """A checkpoint with everything that belongs to it."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Its weights."""
        ...

    @property
    def licence(self) -> str | None:
        """SPDX expression the source itself states."""
        ...

    def text_parts(self) -> TextParts:
        """Read or build the tokenizer and the chat template; raises CheckpointError."""
        ...
