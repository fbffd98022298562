"""The metadata of GGUF files, read as the shape of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from models.checkpoints.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Activation,
    DecoderShape,
    layer_weight,
)
from models.checkpoints.rope import Rope

GGUF_TOP_NAMES: Final[dict[str, str]] = {
    EMBEDDING: "token_embd.weight",
    HEAD: "output.weight",
    FINAL_NORM: "output_norm.weight",
}
GGUF_LAYER_NAMES: Final[dict[str, str]] = {
    "attention_norm": "attn_norm.weight",
    "feed_forward_norm": "ffn_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "post_feed_forward_norm": "post_ffw_norm.weight",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
ROPE_DIVISORS: Final = "rope_freqs.weight"
"""Tensor [head_dim / 2]: by what each frequency is divided, where a checkpoint says so."""
ARCHITECTURES: Final = ("llama", "qwen2", "qwen3", "gemma3")
_GEMMA: Final = "gemma3"
# Defaults of llama.cpp for what Gemma 3's files leave out. Source: llama-model.cpp.
_GEMMA_WINDOW_ROPE_BASE: Final = 10_000.0
_GEMMA_PERIOD: Final = 6
# The one size whose queries are not scaled by their own width. Source: the same.
_GEMMA_27B_LAYERS: Final = 62
_SOFTCAPS: Final = ("attn_logit_softcapping", "final_logit_softcapping")

Metadata: TypeAlias = Callable[[str], Any]
"""A metadata field's value by its full key; None: the file does not have it."""


def stored_name(name: str) -> str:
    """Return the name that GGUF gives a weight of canonical name `name`."""
    if name in GGUF_TOP_NAMES:
        return GGUF_TOP_NAMES[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{GGUF_LAYER_NAMES[part]}"


def permutes_heads(metadata: Metadata) -> bool:
    """Tell whether rows of q and k lie in llama.cpp's own order: only of one architecture."""
    return bool(metadata("general.architecture") == "llama")


def read_shape(
    metadata: Metadata, tensors: Mapping[str, tuple[int, ...]], divisors: tuple[float, ...]
) -> DecoderShape:
    """Return the shape of a file with `tensors` (sizes by name) and these rotary divisors.

    Raises:
        KeyError: The metadata lacks this.
        TypeError, ValueError: Something has no usable value.
    """
    return _Metadata(metadata, tensors).shape(divisors)


class _Metadata:
    """The metadata of one architecture."""

    def __init__(self, metadata: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> None:
        self._metadata = metadata
        self._tensors = tensors
        self._architecture = str(metadata("general.architecture"))
        self._is_gemma = self._architecture == _GEMMA

    def shape(self, divisors: tuple[float, ...]) -> DecoderShape:
        hidden, heads = self._size("embedding_length"), self._size("attention.head_count")
        head_dim = int(self._optional("attention.key_length") or hidden // heads)
        self._refuse_foreign(head_dim)
        layers = self._size("block_count")
        windows = self._window_layers(layers)
        scale = hidden // heads if self._is_gemma and layers == _GEMMA_27B_LAYERS else head_dim
        return DecoderShape(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=int(self._optional("attention.head_count_kv") or heads),
            head_dim=head_dim,
            feed_forward=self._size("feed_forward_length"),
            vocab=self._tensors[GGUF_TOP_NAMES[EMBEDDING]][0],
            context_tokens=self._size("context_length"),
            norm_epsilon=float(self._required("attention.layer_norm_rms_epsilon")),
            rope=self._rope(head_dim, divisors),
            ties_embedding=GGUF_TOP_NAMES[HEAD] not in self._tensors,
            attention_scale=scale**-0.5,
            embedding_scale=hidden**0.5 if self._is_gemma else 1.0,
            activation=Activation.GELU_TANH if self._is_gemma else Activation.SILU,
            has_qkv_bias=self._has("q_bias"),
            has_head_norms=self._has("q_norm"),
            has_sandwich_norms=self._is_gemma,
            window_tokens=self._size("attention.sliding_window") if windows else None,
            window_layers=windows,
            window_rope=self._window_rope() if windows else None,
        )

    def _refuse_foreign(self, head_dim: int) -> None:
        if int(self._optional("rope.dimension_count") or head_dim) != head_dim:
            raise ValueError("rotary embedding: it turns only a part of each head")
        if int(self._optional("attention.value_length") or head_dim) != head_dim:
            raise ValueError("head: values have another width than keys")
        if int(self._optional("expert_count") or 0):
            raise ValueError("feed-forward block: it is a mixture of experts")
        capped = next((key for key in _SOFTCAPS if self._optional(key)), None)
        if capped:
            raise ValueError(f"{capped}: soft caps are not known")

    def _rope(self, head_dim: int, divisors: tuple[float, ...]) -> Rope:
        rope = Rope(base=float(self._optional("rope.freq_base") or 10_000.0), divisors=divisors)
        kind = self._optional("rope.scaling.type") or "none"
        if kind == "none" or divisors:
            return rope
        factor = self._optional("rope.scaling.factor")
        return rope.stretched(head_dim, {"rope_type": kind, "factor": factor})

    def _window_layers(self, layers: int) -> tuple[int, ...]:
        """Only of Gemma: llama.cpp lets the other architectures see everything."""
        if not self._is_gemma or not self._optional("attention.sliding_window"):
            return ()
        period = int(self._optional("attention.sliding_window_pattern") or _GEMMA_PERIOD)
        return tuple(layer for layer in range(layers) if (layer + 1) % period)

    def _window_rope(self) -> Rope:
        return Rope(base=float(self._optional("rope.freq_base_swa") or _GEMMA_WINDOW_ROPE_BASE))

    def _has(self, part: str) -> bool:
        return stored_name(layer_weight(0, part)) in self._tensors

    def _size(self, key: str) -> int:
        return int(self._required(key))

    def _required(self, key: str) -> Any:
        value = self._optional(key)
        if value is None:
            raise KeyError(f"{self._architecture}.{key}")
        return value

    def _optional(self, key: str) -> Any:
        return self._metadata(f"{self._architecture}.{key}")
