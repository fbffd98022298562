"""How a graph multiplies by a matrix: the number formats of an artefact's variants.

All of them keep the rows of a batch apart, so that a job gets the same answer alone and among
others; ONNX's own dynamic quantisation does not: it has one scale for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from models.checkpoint import HEAD, Float32Array
from models.quantize import quantize_blocks, quantize_channels, quantize_nibbles

# MatMulNBits' accuracy levels: keep its input in 32-bit floats, or quantise it to 8 bits too, block
# by block of each row, so that rows stay apart and integer kernels can be used.
_ACCURACY_FP32: Final = 1
_ACCURACY_INT8: Final = 4
_LARGEST_INPUT: Final = 127
_INPUT_ZERO: Final = 128
# What a row of zeros is divided by.
_TINY: Final = 1e-30


class AddNode(Protocol):
    """Appends a node to a graph."""

    def __call__(
        self, kind: str, inputs: list[str], outputs: list[str], **attributes: object
    ) -> None:
        """Append `kind`; a name left out is an empty string."""
        ...


class GraphParts(msgspec.Struct, frozen=True, kw_only=True):
    """The two ways to add to a graph that is being built."""

    constant: Callable[[str, npt.NDArray[np.generic]], None]
    node: AddNode


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix [rows, columns] of 8-bit blocks that is in the graph, under the prefix `name`."""

    name: str
    rows: int
    columns: int
    block: int


class Products(Protocol):
    """Writes the products of one graph, all in one number format."""

    def multiply(
        self, parts: GraphParts, left: str, *, name: str, matrix: Float32Array, out: str
    ) -> None:
        """Write `out` = `left` [batch, tokens, K] times `matrix` [N, K] transposed.

        Args:
            parts: The graph.
            left: A value of it.
            name: Prefix of what is written for the matrix.
            matrix: Quantised here.
            out: Name of the result [batch, tokens, N].
        """
        ...

    def multiply_head(
        self, parts: GraphParts, left: str, *, table: Table | None, matrix: Float32Array, out: str
    ) -> None:
        """Write the product with the output head.

        Args:
            parts: The graph.
            left: A value of it.
            table: The head's numbers, where the embedding has written them already.
            matrix: The head [vocab, hidden].
            out: Name of the result.
        """
        ...


class ByteBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """8-bit weights in blocks.

    Attributes:
        block: Weights that share a scale.
        has_integer_inputs: Quantise the inputs of each product too: what CPUs with 8-bit
            dot products are fast at.
    """

    block: int
    has_integer_inputs: bool = True

    def multiply(
        self, parts: GraphParts, left: str, *, name: str, matrix: Float32Array, out: str
    ) -> None:
        """Write one MatMulNBits."""
        table = write_table(parts, name, matrix, block=self.block)
        _multiply_table(parts, left, table=table, accuracy=_accuracy(self), out=out)

    def multiply_head(
        self, parts: GraphParts, left: str, *, table: Table | None, matrix: Float32Array, out: str
    ) -> None:
        """Read the embedding's table where there is one."""
        table = table or write_table(parts, HEAD, matrix, block=self.block)
        _multiply_table(parts, left, table=table, accuracy=_accuracy(self), out=out)


class NibbleBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """4-bit weights in blocks, each with its own zero point; the inputs as `ByteBlocks` has them.

    The head has 8 bits: it is the embedding's table, and 4 are too few there.
    """

    block: int
    has_integer_inputs: bool = True

    def multiply(
        self, parts: GraphParts, left: str, *, name: str, matrix: Float32Array, out: str
    ) -> None:
        """Write one MatMulNBits."""
        quantized = quantize_nibbles(matrix, block=self.block)
        parts.constant(f"{name}.nibbles", quantized.values)
        parts.constant(f"{name}.scales", quantized.scales)
        parts.constant(f"{name}.zeros", quantized.zero_points)
        parts.node(
            "MatMulNBits",
            [left, f"{name}.nibbles", f"{name}.scales", f"{name}.zeros"],
            [out],
            N=matrix.shape[0],
            K=matrix.shape[1],
            bits=4,
            block_size=self.block,
            accuracy_level=_accuracy(self),
        )

    def multiply_head(
        self, parts: GraphParts, left: str, *, table: Table | None, matrix: Float32Array, out: str
    ) -> None:
        """Read the embedding's table where there is one."""
        table = table or write_table(parts, HEAD, matrix, block=self.block)
        _multiply_table(parts, left, table=table, accuracy=_accuracy(self), out=out)


class ByteRows:
    """8-bit weights with a scale for each output, 8-bit inputs with a scale for each row.

    Unsigned times unsigned, the only pair of 8-bit types that every CPU multiplies exactly: on
    x86 without VNNI the mixed pair saturates in 16 bits. ARMv8.0 has a kernel for it that needs no
    dot products. The scale of a row is found by ordinary operators, as ONNX Runtime's
    DynamicQuantizeLinear knows only one scale for a whole batch.
    """

    def __init__(self) -> None:
        self._quantized: set[str] = set()

    def multiply(
        self, parts: GraphParts, left: str, *, name: str, matrix: Float32Array, out: str
    ) -> None:
        """Quantise the input, unless a product before did, and write one integer product."""
        self._quantize_input(parts, left)
        weights = quantize_channels(matrix)
        parts.constant(f"{name}.bytes", weights.values)
        parts.constant(f"{name}.scales", weights.scales)
        parts.constant(f"{name}.zeros", weights.zero_points)
        inputs = [f"{left}.bytes", f"{name}.bytes", "one", f"{name}.scales"]
        inputs += ["input_zero", f"{name}.zeros"]
        parts.node("MatMulIntegerToFloat", inputs, [f"{out}.unscaled"])
        parts.node("Mul", [f"{out}.unscaled", f"{left}.scale"], [out])

    def multiply_head(
        self,
        parts: GraphParts,
        left: str,
        *,
        table: Table | None,  # noqa: ARG002 - of blocks, which such a CPU would unpack every token
        matrix: Float32Array,
        out: str,
    ) -> None:
        """Write the head once more, in this format."""
        self.multiply(parts, left, name=f"{HEAD}.rows", matrix=matrix, out=out)

    def _quantize_input(self, parts: GraphParts, left: str) -> None:
        if not self._quantized:
            parts.constant("one", np.array(1, np.float32))
            parts.constant("input_zero", np.array(_INPUT_ZERO, np.uint8))
            parts.constant("input_step", np.array(1 / _LARGEST_INPUT, np.float32))
            parts.constant("input_tiny", np.array(_TINY, np.float32))
            parts.constant("input_axis", np.array([-1], np.int64))
        if left in self._quantized:
            return
        self._quantized.add(left)
        parts.node("Abs", [left], [f"{left}.size"])
        parts.node("ReduceMax", [f"{left}.size", "input_axis"], [f"{left}.largest"], keepdims=1)
        parts.node("Mul", [f"{left}.largest", "input_step"], [f"{left}.step"])
        parts.node("Max", [f"{left}.step", "input_tiny"], [f"{left}.scale"])
        parts.node("Div", [left, f"{left}.scale"], [f"{left}.levels"])
        parts.node("QuantizeLinear", [f"{left}.levels", "one", "input_zero"], [f"{left}.bytes"])


def write_table(parts: GraphParts, name: str, matrix: Float32Array, *, block: int) -> Table:
    """Write a matrix in 8-bit blocks, as products and the embedding read it."""
    quantized = quantize_blocks(matrix, block=block)
    parts.constant(f"{name}.values", quantized.values)
    parts.constant(f"{name}.scales", quantized.scales)
    return Table(name=name, rows=quantized.rows, columns=quantized.columns, block=block)


def _multiply_table(parts: GraphParts, left: str, *, table: Table, accuracy: int, out: str) -> None:
    parts.node(
        "MatMulNBits",
        [left, f"{table.name}.values", f"{table.name}.scales"],
        [out],
        N=table.rows,
        K=table.columns,
        bits=8,
        block_size=table.block,
        accuracy_level=accuracy,
    )


def _accuracy(products: ByteBlocks | NibbleBlocks) -> int:
    return _ACCURACY_INT8 if products.has_integer_inputs else _ACCURACY_FP32
