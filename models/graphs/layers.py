"""A layer of a decoder in a graph: attention and the gated feed-forward block."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from models.checkpoints.checkpoint import (
    LAYER_BIASES,
    Activation,
    Checkpoint,
    Float32Array,
    layer_weight,
)
from models.graphs.norms import NormWriter
from models.graphs.products import GraphParts, Products


class LayerWriter:
    """Writes the layers of one graph, with what the checkpoint's family adds to a Llama's."""

    def __init__(
        self, checkpoint: Checkpoint, parts: GraphParts, *, norms: NormWriter, products: Products
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = checkpoint.shape
        self._parts = parts
        self._norms = norms
        self._products = products

    def write_rotary_tables(self) -> None:
        """Tables [context, head_dim / 2] of cosines and sines for every rotary embedding."""
        shape = self._shape
        ropes = {self._rotary(layer): shape.rope_of(layer) for layer in range(shape.layers)}
        for name, rope in ropes.items():
            angles = rope.angles(shape.head_dim, shape.context_tokens)
            self._parts.constant(f"{name}.cos", np.cos(angles).astype(np.float32))
            self._parts.constant(f"{name}.sin", np.sin(angles).astype(np.float32))

    def attend(self, layer: int, normed: str) -> str:
        """Return what attention adds to the residual stream."""
        shape, at = self._shape, f"layers.{layer}"
        rotary, window = self._rotary(layer), shape.window_of(layer)
        self._parts.node(
            "GroupQueryAttention",
            [
                *self._queries_keys_values(layer, normed),
                *(f"past.{layer}.key", f"past.{layer}.value", "seqlens_k", "total_len"),
                *(f"{rotary}.cos", f"{rotary}.sin"),
            ],
            [f"{at}.attended", f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            scale=shape.attention_scale,
            do_rotary=1,
            rotary_interleaved=0,
            **({"local_window_size": window} if window else {}),
        )
        attended = self._matmul(f"{at}.attended", f"{at}.o", self._weight(layer, "o"))
        return self._sandwiched(attended, layer, "post_attention_norm")

    def feed_forward(self, layer: int, normed: str) -> str:
        """Return what the feed-forward block adds to the residual stream."""
        at = f"layers.{layer}"
        gate = self._matmul(normed, f"{at}.gate", self._weight(layer, "gate"))
        up = self._matmul(normed, f"{at}.up", self._weight(layer, "up"))
        self._parts.node("Mul", [self._bend(gate, at), up], [f"{at}.gated"])
        self._products.multiply(
            self._parts,
            f"{at}.gated",
            name=f"{at}.down",
            matrix=self._weight(layer, "down"),
            out=f"{at}.down.out",
            is_gated=True,
        )
        fed = f"{at}.down.out"
        return self._sandwiched(fed, layer, "post_feed_forward_norm")

    def _rotary(self, layer: int) -> str:
        is_common = self._shape.rope_of(layer) == self._shape.rope
        return "rotary" if is_common else "rotary.window"

    def _queries_keys_values(self, layer: int, normed: str) -> tuple[str, str, str]:
        """One product for all three; they stay packed unless heads are normed first."""
        at = f"layers.{layer}"
        matrices = [self._weight(layer, name) for name in ("q", "k", "v")]
        qkv = self._matmul(normed, f"{at}.qkv", np.concatenate(matrices))
        if self._shape.has_qkv_bias:
            bias = np.concatenate([self._weight(layer, name) for name in LAYER_BIASES])
            self._parts.constant(f"{at}.qkv.bias", bias)
            self._parts.node("Add", [qkv, f"{at}.qkv.bias"], [f"{at}.qkv.biased"])
            qkv = f"{at}.qkv.biased"
        if not self._shape.has_head_norms:
            return qkv, "", ""
        widths = np.array([len(matrix) for matrix in matrices], np.int64)
        self._parts.constant(f"{at}.qkv.widths", widths)
        query, key, value = (f"{at}.{name}.split" for name in ("q", "k", "v"))
        self._parts.node("Split", [qkv, f"{at}.qkv.widths"], [query, key, value], axis=2)
        return self._norm(query, layer, "q_norm"), self._norm(key, layer, "k_norm"), value

    def _bend(self, gate: str, at: str) -> str:
        match self._shape.activation:
            case Activation.SILU:
                self._parts.node("QuickGelu", [gate], [f"{at}.silu"], alpha=1.0)
                return f"{at}.silu"
            case Activation.GELU_TANH:
                self._parts.node("Gelu", [gate], [f"{at}.gelu"], approximate="tanh")
                return f"{at}.gelu"
            case _:
                assert_never(self._shape.activation)

    def _sandwiched(self, branch: str, layer: int, name: str) -> str:
        return self._norm(branch, layer, name) if self._shape.has_sandwich_norms else branch

    def _norm(self, hidden: str, layer: int, name: str) -> str:
        return self._norms.rows(hidden, layer_weight(layer, name), self._weight(layer, name))

    def _weight(self, layer: int, name: str) -> Float32Array:
        return self._checkpoint.weight(layer_weight(layer, name))

    def _matmul(self, left: str, name: str, matrix: Float32Array) -> str:
        out = f"{name}.out"
        self._products.multiply(self._parts, left, name=name, matrix=matrix, out=out)
        return out
