"""GGUF files (llama.cpp's format) of Llama-like models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, dequantize

from models.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Float32Array,
    LlamaShape,
    TextParts,
)
from models.errors import CheckpointError
from models.tokenizer import GgufVocabulary, build_tokenizer_json

GGUF_TOP_NAMES: Final[dict[str, str]] = {
    EMBEDDING: "token_embd.weight",
    HEAD: "output.weight",
    FINAL_NORM: "output_norm.weight",
}
GGUF_LAYER_NAMES: Final[dict[str, str]] = {
    "attention_norm": "attn_norm.weight",
    "feed_forward_norm": "ffn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
# Tensors that change the forward pass in ways the graph builder does not know.
_FOREIGN_SUFFIXES: Final = (
    ".bias",
    "rope_freqs.weight",
    "attn_q_norm.weight",
    "ffn_gate_inp.weight",
)


def unpermute(matrix: Float32Array, *, heads: int) -> Float32Array:
    """Undo llama.cpp's row order of q and k.

    It stores the two halves of a head that the rotary embedding turns together interleaved, row by
    row; the graph wants half after half. Source: `LlamaModel.permute` in llama.cpp's converter.
    """
    rows, columns = matrix.shape
    half = rows // heads // 2
    return np.ascontiguousarray(
        matrix.reshape(heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


class GgufSource:
    """A GGUF file: its weights, and its tokenizer and chat template from the metadata."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._reader = GGUFReader(str(path))
        except (ValueError, KeyError, IndexError, OSError) as error:
            raise self._broken(f"cannot be read: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._refuse_foreign()
        self.shape = self._read_shape()

    @property
    def checkpoint(self) -> GgufSource:
        """Itself."""
        return self

    @property
    def licence(self) -> str | None:
        """As the file states it."""
        named = self._optional("general.license")
        known = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
        return known.get(str(named), str(named)) if named else None

    def weight(self, name: str) -> Float32Array:
        """Return one weight, dequantised, q and k in the graph's row order."""
        stored = self._stored_name(name)
        tensor = self._tensors.get(stored)
        if tensor is None:
            raise self._broken(f"has no tensor {stored}")
        try:
            flat = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise self._broken(f"{stored}: {error}") from error
        # GGUF names the fastest dimension first.
        matrix = flat.astype(np.float32).reshape(tuple(int(n) for n in tensor.shape[::-1]))
        if name.endswith(".q"):
            return unpermute(matrix, heads=self.shape.heads)
        if name.endswith(".k"):
            return unpermute(matrix, heads=self.shape.kv_heads)
        return matrix

    def text_parts(self) -> TextParts:
        """Build the tokenizer from the vocabulary and merges in the metadata."""
        if self._required("tokenizer.ggml.model") != "gpt2":
            raise self._broken("has a tokenizer that is not byte-level BPE")
        vocabulary = GgufVocabulary(
            tokens=self._required("tokenizer.ggml.tokens"),
            kinds=self._required("tokenizer.ggml.token_type"),
            merges=self._required("tokenizer.ggml.merges"),
            pre_tokenizer=str(self._required("tokenizer.ggml.pre")),
        )
        return TextParts(
            tokenizer_json=build_tokenizer_json(vocabulary),
            chat_template=str(self._required("tokenizer.chat_template")),
            stop_tokens=(int(self._required("tokenizer.ggml.eos_token_id")),),
        )

    def _refuse_foreign(self) -> None:
        architecture = self._required("general.architecture")
        if architecture != "llama":
            raise self._broken(f"is of architecture {architecture}, not llama")
        for name in self._tensors:
            if name.endswith(_FOREIGN_SUFFIXES):
                raise self._broken(f"has {name}, which the graph builder does not know")

    def _read_shape(self) -> LlamaShape:
        hidden, heads = self._size("embedding_length"), self._size("attention.head_count")
        head_dim = int(self._optional("llama.attention.key_length") or hidden // heads)
        if int(self._optional("llama.rope.dimension_count") or head_dim) != head_dim:
            raise self._broken("turns only a part of each head by its rotary embedding")
        return LlamaShape(
            layers=self._size("block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=int(self._optional("llama.attention.head_count_kv") or heads),
            head_dim=head_dim,
            feed_forward=self._size("feed_forward_length"),
            vocab=len(self._required("tokenizer.ggml.tokens")),
            context_tokens=self._size("context_length"),
            norm_epsilon=float(self._required("llama.attention.layer_norm_rms_epsilon")),
            rope_base=float(self._optional("llama.rope.freq_base") or 10_000.0),
            ties_embedding=GGUF_TOP_NAMES[HEAD] not in self._tensors,
        )

    def _size(self, key: str) -> int:
        return int(self._required(f"llama.{key}"))

    def _required(self, key: str) -> Any:
        value = self._optional(key)
        if value is None:
            raise self._broken(f"does not state {key}")
        return value

    def _optional(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()

    def _stored_name(self, name: str) -> str:
        if name in GGUF_TOP_NAMES:
            return GGUF_TOP_NAMES[name]
        _, layer, part = name.split(".")
        return f"blk.{layer}.{GGUF_LAYER_NAMES[part]}"

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} {what}", hint="use a GGUF file of a Llama-like model"
        )
