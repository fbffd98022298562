"""A checkpoint as the graph builder sees it, whatever file it came from."""

from __future__ import annotations

from typing import Annotated, Final, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]

EMBEDDING: Final = "embedding"
"""Weight [vocab, hidden]; also the output head where `LlamaShape.ties_embedding`."""
HEAD: Final = "head"
"""Weight [vocab, hidden] of the output head of an untied checkpoint."""
FINAL_NORM: Final = "final_norm"
"""Weight [hidden]."""
LAYER_NORMS: Final = ("attention_norm", "feed_forward_norm")
"""Weights [hidden] of a layer."""
LAYER_MATRICES: Final = ("q", "k", "v", "o", "gate", "up", "down")
"""Weights [outputs, inputs] of a layer; q and k for a rotary embedding of two halves."""


def layer_weight(layer: int, name: str) -> str:
    """Return the canonical name of a weight of a layer, counted from 0."""
    return f"layers.{layer}.{name}"


class LlamaShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a Llama-like decoder.

    Attributes:
        hidden: Width of the residual stream.
        feed_forward: Width inside the gated feed-forward block.
        rope_base: Base of the rotary embedding's frequencies; it turns the whole head.
        ties_embedding: The output head is the embedding matrix.
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
    rope_base: float
    ties_embedding: bool

    def parameters(self) -> int:
        """Return the number of weights, the head counted once where it is tied."""
        attention = self.head_dim * (2 * self.heads + 2 * self.kv_heads) * self.hidden
        layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        tables = self.vocab * self.hidden * (1 if self.ties_embedding else 2)
        return self.layers * layer + tables + self.hidden


class Checkpoint(Protocol):
    """Weights by canonical name, dequantised and read one at a time to save memory."""

    @property
    def shape(self) -> LlamaShape:
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
    def shape(self) -> LlamaShape:
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
