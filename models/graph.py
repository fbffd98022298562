"""The ONNX graph of a Llama-like decoder with 8-bit weights, written node by node.

Built from the operators that ONNX Runtime fuses such models into anyway, so nothing is left for a
loader to optimise: one packed matrix for q, k and v, GroupQueryAttention with the rotary
embedding inside, RMS norms that add the residual, and an embedding that reads the output head's
quantised matrix. Inputs and outputs are described at `fleet_protocol.manifest.Architecture`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Checkpoint,
    Float32Array,
    LlamaShape,
    layer_weight,
)
from models.products import ByteBlocks, GraphParts, Products, write_table
from models.progress import Progress

OPSET: Final = 21
IR_VERSION: Final = 10
GRAPH_NAME: Final = "model.onnx"
WEIGHTS_NAME: Final = "model.onnx.data"
_CONTRIB: Final = "com.microsoft"


class GraphBuilder:
    """Collects the nodes and constants of one graph.

    Args:
        checkpoint: Where the weights come from.
        block: Weights that share a scale in the embedding's table.
        products: The number format of the other matrices; None: 8-bit blocks as large.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, block: int, products: Products | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = checkpoint.shape
        self._block = block
        self._products = products or ByteBlocks(block=block)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._parts = GraphParts(constant=self._constant, node=self._node)

    def build(self, progress: Progress) -> onnx.ModelProto:
        """Read, quantise and connect every weight."""
        self._rotary_tables()
        residual = self._embed()
        normed = self._first_norm(residual, layer_weight(0, "attention_norm"))
        for layer in range(self._shape.layers):
            attended = self._attend(layer, normed)
            normed, residual = self._skip_norm(
                residual, attended, layer_weight(layer, "feed_forward_norm")
            )
            fed = self._feed_forward(layer, normed)
            normed, residual = self._skip_norm(residual, fed, self._norm_after(layer))
            progress.advance(layer + 1, self._shape.layers)
        self._head(normed)
        return self._model()

    def _norm_after(self, layer: int) -> str:
        is_last = layer + 1 == self._shape.layers
        return FINAL_NORM if is_last else layer_weight(layer + 1, "attention_norm")

    def _rotary_tables(self) -> None:
        """Tables [context, head_dim / 2] of cosines and sines."""
        shape = self._shape
        exponents = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
        angles = np.outer(np.arange(shape.context_tokens), shape.rope_base**-exponents)
        self._constant("rotary.cos", np.cos(angles).astype(np.float32))
        self._constant("rotary.sin", np.sin(angles).astype(np.float32))

    def _embed(self) -> str:
        """Look tokens up in a table that also is the head where the checkpoint ties the two."""
        shape = self._shape
        weight = self._checkpoint.weight(EMBEDDING)
        self._embedding = write_table(self._parts, EMBEDDING, weight, block=self._block)
        self._constant("embedding.shape", np.array([shape.vocab, shape.hidden], np.int64))
        self._node("Reshape", ["embedding.values", "embedding.shape"], ["embedding.table"])
        self._node(
            "GatherBlockQuantized",
            ["embedding.table", "input_ids", "embedding.scales"],
            ["embedded"],
            bits=8,
            block_size=self._block,
            gather_axis=0,
            quantize_axis=1,
        )
        return "embedded"

    def _attend(self, layer: int, normed: str) -> str:
        shape, at = self._shape, f"layers.{layer}"
        packed = np.concatenate([self._layer(layer, name) for name in ("q", "k", "v")])
        qkv = self._matmul(normed, f"{at}.qkv", packed)
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        self._node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_len", "rotary.cos", "rotary.sin"],
            [f"{at}.attended", f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            scale=shape.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self._matmul(f"{at}.attended", f"{at}.o", self._layer(layer, "o"))

    def _feed_forward(self, layer: int, normed: str) -> str:
        at = f"layers.{layer}"
        gate = self._matmul(normed, f"{at}.gate", self._layer(layer, "gate"))
        up = self._matmul(normed, f"{at}.up", self._layer(layer, "up"))
        self._node("Sigmoid", [gate], [f"{at}.sigmoid"])
        self._node("Mul", [gate, f"{at}.sigmoid"], [f"{at}.silu"])
        self._node("Mul", [f"{at}.silu", up], [f"{at}.gated"])
        return self._matmul(f"{at}.gated", f"{at}.down", self._layer(layer, "down"))

    def _head(self, normed: str) -> None:
        """Only the last `logit_tokens` positions' logits: the rest of a prompt needs none."""
        self._constant("last.end", np.array([np.iinfo(np.int64).max], np.int64))
        self._constant("last.axis", np.array([1], np.int64))
        self._node("Neg", ["logit_tokens"], ["last.start"])
        self._node("Slice", [normed, "last.start", "last.end", "last.axis"], ["last_hidden"])
        is_tied = self._shape.ties_embedding
        self._products.multiply_head(
            self._parts,
            "last_hidden",
            table=self._embedding if is_tied else None,
            matrix=self._checkpoint.weight(EMBEDDING if is_tied else HEAD),
            out="logits",
        )

    def _first_norm(self, hidden: str, name: str) -> str:
        """RMS norm of the embedding, in ONNX's own operators: nothing is added to it yet."""
        self._constant(name, self._checkpoint.weight(name))
        self._constant(f"{name}.axis", np.array([-1], np.int64))
        self._constant(f"{name}.epsilon", np.array([self._shape.norm_epsilon], np.float32))
        square, mean, root = f"{name}.square", f"{name}.mean", f"{name}.root"
        self._node("Mul", [hidden, hidden], [square])
        self._node("ReduceMean", [square, f"{name}.axis"], [mean], keepdims=1)
        self._node("Add", [mean, f"{name}.epsilon"], [f"{mean}.kept_off_zero"])
        self._node("Sqrt", [f"{mean}.kept_off_zero"], [root])
        self._node("Div", [hidden, root], [f"{name}.unit"])
        self._node("Mul", [f"{name}.unit", name], [f"{name}.out"])
        return f"{name}.out"

    def _skip_norm(self, residual: str, branch: str, name: str) -> tuple[str, str]:
        """Add the branch to the residual stream; return (normed, new residual)."""
        self._constant(name, self._checkpoint.weight(name))
        outputs = [f"{name}.out", "", "", f"{name}.residual"]
        self._node(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, name],
            outputs[:1] if name == FINAL_NORM else outputs,
            epsilon=self._shape.norm_epsilon,
        )
        return outputs[0], outputs[3]

    def _layer(self, layer: int, name: str) -> Float32Array:
        return self._checkpoint.weight(layer_weight(layer, name))

    def _matmul(self, left: str, name: str, matrix: Float32Array) -> str:
        out = f"{name}.out"
        self._products.multiply(self._parts, left, name=name, matrix=matrix, out=out)
        return out

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> None:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Append a node; operators that ONNX itself lacks live in ONNX Runtime's domain."""
        domain = "" if onnx.defs.has(kind) else _CONTRIB
        name = f"{kind}:{outputs[0]}"
        self._nodes.append(
            helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        )

    def _model(self) -> onnx.ModelProto:
        inputs, outputs = graph_signature(self._shape)
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, self._constants)
        return helper.make_model(
            graph,
            producer_name="edgefleet",
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)],
            ir_version=IR_VERSION,
        )


def graph_signature(
    shape: LlamaShape,
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the graph's inputs and outputs, in order."""
    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        value("seqlens_k", TensorProto.INT32, ["batch"]),
        value("total_len", TensorProto.INT32, [1]),
        value("logit_tokens", TensorProto.INT64, [1]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "logit_tokens", shape.vocab])]
    for layer in range(shape.layers):
        for part in ("key", "value"):
            past: list[str | int | None] = ["batch", shape.kv_heads, "past_len", shape.head_dim]
            present: list[str | int | None] = [
                "batch",
                shape.kv_heads,
                "present_len",
                shape.head_dim,
            ]
            inputs.append(value(f"past.{layer}.{part}", TensorProto.FLOAT, past))
            outputs.append(value(f"present.{layer}.{part}", TensorProto.FLOAT, present))
    return inputs, outputs


def save_graph(model: onnx.ModelProto, folder: Path) -> None:
    """Write `model.onnx` and, beside it, the weights; the same model gives the same bytes."""
    onnx.save_model(
        model,
        str(folder / GRAPH_NAME),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS_NAME,
        size_threshold=1024,
    )
