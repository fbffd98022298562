"""The ONNX graph of a decoder with 8-bit weights, written node by node.

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

from models.checkpoints.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Checkpoint,
    DecoderShape,
    layer_weight,
)
from models.graphs.layers import LayerWriter
from models.graphs.norms import NormWriter
from models.graphs.products import ByteBlocks, GraphParts, Products, Table
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
        self._norms = NormWriter(self._parts, epsilon=self._shape.norm_epsilon)

    def build(self, progress: Progress) -> onnx.ModelProto:
        """Read, quantise and connect every weight."""
        layers = LayerWriter(
            self._checkpoint, self._parts, norms=self._norms, products=self._products
        )
        layers.write_rotary_tables()
        table = self._write_table()
        residual = self._embed(table)
        first = layer_weight(0, "attention_norm")
        normed = self._norms.plain(residual, first, self._checkpoint.weight(first))
        for layer in range(self._shape.layers):
            attended = layers.attend(layer, normed)
            normed, residual = self._skip_norm(
                residual, attended, layer_weight(layer, "feed_forward_norm")
            )
            fed = layers.feed_forward(layer, normed)
            normed, residual = self._skip_norm(residual, fed, self._norm_after(layer))
            progress.advance(layer + 1, self._shape.layers)
        self._head(normed, table)
        return self._model()

    def _norm_after(self, layer: int) -> str:
        is_last = layer + 1 == self._shape.layers
        return FINAL_NORM if is_last else layer_weight(layer + 1, "attention_norm")

    def _skip_norm(self, residual: str, branch: str, name: str) -> tuple[str, str]:
        """Add the branch to the residual stream; return (normed, new residual)."""
        return self._norms.skip(residual, branch, name, self._checkpoint.weight(name))

    def _write_table(self) -> Table:
        """Write the embedding, which also is the head where the checkpoint ties the two."""
        weight = self._checkpoint.weight(EMBEDDING)
        return self._products.write_embedding(self._parts, weight, block=self._block)

    def _embed(self, table: Table) -> str:
        self._products.look_up(self._parts, table, out="embedded")
        if self._shape.embedding_scale == 1:
            return "embedded"
        self._constant("embedded.scale", np.array(self._shape.embedding_scale, np.float32))
        self._node("Mul", ["embedded", "embedded.scale"], ["embedded.scaled"])
        return "embedded.scaled"

    def _head(self, normed: str, table: Table) -> None:
        """Only the last `logit_tokens` positions' logits: the rest of a prompt needs none."""
        self._constant("last.end", np.array([np.iinfo(np.int64).max], np.int64))
        self._constant("last.axis", np.array([1], np.int64))
        self._node("Neg", ["logit_tokens"], ["last.start"])
        self._node("Slice", [normed, "last.start", "last.end", "last.axis"], ["last_hidden"])
        is_tied = self._shape.ties_embedding
        self._products.multiply_head(
            self._parts,
            "last_hidden",
            table=table if is_tied else None,
            matrix=self._checkpoint.weight(EMBEDDING if is_tied else HEAD),
            out="logits",
        )

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
    shape: DecoderShape,
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
