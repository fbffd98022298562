"""The ONNX graph of a BERT-like sentence encoder with 8-bit weights, written node by node.

Pooling and the scaling to length 1 are inside, so whoever runs it needs no arithmetic of its own.
Inputs and outputs are described at `fleet_protocol.manifest.EmbeddingManifest`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.checkpoints.checkpoint import Float32Array
from models.embedding.checkpoint import (
    ATTENTION_NORM,
    ATTENTION_OUT,
    DOWN,
    DOWN_NORM,
    EMBEDDING,
    EMBEDDING_NORM,
    KEY,
    POSITIONS,
    QUERY,
    SEGMENTS,
    UP,
    VALUE,
    EncoderFolder,
    layer_part,
)
from models.graphs.builder import IR_VERSION, OPSET
from models.graphs.quantize import quantize_blocks
from models.progress import Progress

_CONTRIB: Final = "com.microsoft"
# MatMulNBits: quantise its input to 8 bits, too, block by block of each row, so that what a text
# gives does not depend on the texts beside it.
_ACCURACY_INT8: Final = 4


class EncoderGraph:
    """Collects the nodes and constants of one graph.

    Args:
        folder: Where the weights come from.
        block: Weights that share a scale.
    """

    def __init__(self, folder: EncoderFolder, *, block: int) -> None:
        self._folder = folder
        self._shape = folder.shape
        self._block = block
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def build(self, progress: Progress) -> onnx.ModelProto:
        """Read, quantise and connect every weight."""
        hidden = self._embed()
        for layer in range(self._shape.layers):
            attended = self._attend(hidden, layer)
            hidden = self._skip_norm(hidden, attended, layer_part(layer, ATTENTION_NORM))
            up = self._dense(hidden, layer_part(layer, UP))
            self._node("Gelu", [up], [f"{up}.gelu"])
            down = self._dense(f"{up}.gelu", layer_part(layer, DOWN))
            hidden = self._skip_norm(hidden, down, layer_part(layer, DOWN_NORM))
            progress.advance(layer + 1, self._shape.layers)
        self._pool(hidden)
        return self._model()

    def _embed(self) -> str:
        """Add what token and place stand for; every text is of the first segment."""
        self._quantized(EMBEDDING, self._folder.weight(EMBEDDING), rows=self._shape.vocab)
        self._node(
            "GatherBlockQuantized",
            [f"{EMBEDDING}.values", "input_ids", f"{EMBEDDING}.scales"],
            ["embedded"],
            bits=8,
            block_size=self._block,
            gather_axis=0,
            quantize_axis=1,
        )
        places = self._folder.weight(POSITIONS)[: self._shape.max_tokens]
        self._constant("places", places + self._folder.weight(SEGMENTS)[0])
        self._constant("zero", np.array([0], np.int64))
        self._node("Shape", ["input_ids"], ["tokens"], start=1, end=2)
        self._node("Slice", ["places", "zero", "tokens"], ["place"])
        self._node("Add", ["embedded", "place"], ["placed"])
        gain, bias = self._norm(EMBEDDING_NORM)
        self._node(
            "LayerNormalization",
            ["placed", gain, bias],
            ["normed"],
            epsilon=self._shape.norm_epsilon,
        )
        return "normed"

    def _attend(self, hidden: str, layer: int) -> str:
        """Attend with q, k and v from one packed matrix, to a row's own tokens only."""
        at = f"layer.{layer}"
        parts = [layer_part(layer, part) for part in (QUERY, KEY, VALUE)]
        packed = np.concatenate([self._folder.weight(f"{part}.weight") for part in parts])
        bias = np.concatenate([self._folder.weight(f"{part}.bias") for part in parts])
        self._product(hidden, f"{at}.qkv", packed, bias)
        split = [f"{at}.query", f"{at}.key", f"{at}.value"]
        self._node("Split", [f"{at}.qkv.out"], split, axis=-1, num_outputs=3)
        self._node(
            "MultiHeadAttention",
            [*split, "", "lengths"],
            [f"{at}.attended"],
            num_heads=self._shape.heads,
        )
        return self._dense(f"{at}.attended", layer_part(layer, ATTENTION_OUT))

    def _skip_norm(self, residual: str, branch: str, name: str) -> str:
        gain, bias = self._norm(name)
        self._node(
            "SkipLayerNormalization",
            [residual, branch, gain, bias],
            [f"{name}.out"],
            epsilon=self._shape.norm_epsilon,
        )
        return f"{name}.out"

    def _pool(self, hidden: str) -> None:
        """Sum a row's own tokens and scale to length 1: the mean's direction is the sum's."""
        self._constant("first", np.array(0, np.int64))
        self._constant("one", np.array(1, np.int64))
        self._constant("last_axis", np.array([-1], np.int64))
        self._constant("token_axis", np.array([1], np.int64))
        self._node("Squeeze", ["tokens"], ["token_count"])
        self._node("Range", ["first", "token_count", "one"], ["index"])
        self._node("Cast", ["lengths"], ["lengths64"], to=TensorProto.INT64)
        self._node("Unsqueeze", ["lengths64", "last_axis"], ["row_length"])
        self._node("Less", ["index", "row_length"], ["is_token"])
        self._node("Unsqueeze", ["is_token", "last_axis"], ["is_kept"])
        self._constant("nothing", np.array(0, np.float32))
        # Chosen, not multiplied: whatever stands in the padding, zero times it might not be zero.
        self._node("Where", ["is_kept", hidden, "nothing"], ["kept"])
        self._node("ReduceSum", ["kept", "token_axis"], ["sum"], keepdims=0)
        self._node("LpNormalization", ["sum"], ["embedding"], axis=-1, p=2)

    def _dense(self, left: str, name: str) -> str:
        weight = self._folder.weight
        return self._product(left, name, weight(f"{name}.weight"), weight(f"{name}.bias"))

    def _product(self, left: str, name: str, matrix: Float32Array, bias: Float32Array) -> str:
        rows, columns = matrix.shape
        self._quantized(name, matrix)
        self._constant(f"{name}.bias", bias)
        self._node(
            "MatMulNBits",
            [left, f"{name}.values", f"{name}.scales", "", "", f"{name}.bias"],
            [f"{name}.out"],
            N=rows,
            K=columns,
            bits=8,
            block_size=self._block,
            accuracy_level=_ACCURACY_INT8,
        )
        return f"{name}.out"

    def _norm(self, name: str) -> tuple[str, str]:
        names = (f"{name}.weight", f"{name}.bias")
        for part in names:
            self._constant(part, self._folder.weight(part))
        return names

    def _quantized(self, name: str, matrix: Float32Array, *, rows: int | None = None) -> None:
        """Keep a matrix in blocks; `rows`: as a table of so many rows to look up instead."""
        quantized = quantize_blocks(matrix, block=self._block)
        values = quantized.values if rows is None else quantized.values.reshape(rows, -1)
        self._constant(f"{name}.values", values)
        self._constant(f"{name}.scales", quantized.scales)

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
        value = helper.make_tensor_value_info
        inputs = [
            value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            value("lengths", TensorProto.INT32, ["batch"]),
        ]
        outputs = [value("embedding", TensorProto.FLOAT, ["batch", self._shape.hidden])]
        graph = helper.make_graph(self._nodes, "encoder", inputs, outputs, self._constants)
        return helper.make_model(
            graph,
            producer_name="edgefleet",
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)],
            ir_version=IR_VERSION,
        )
