"""How a graph multiplies by a matrix: the number formats of an artefact's variants.

Those in blocks are here, the one in whole rows is in `row_products.py`. All of them keep the
rows of a batch apart, so that a job gets the same answer alone and among others; ONNX's own dynamic
quantisation does not: it has one scale for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import EMBEDDING, HEAD, Float32Array
from models.graphs.quantize import quantize_blocks, quantize_nibbles

# MatMulNBits' accuracy levels: keep its input in 32-bit floats, or quantise it to 8 bits too, block
# by block of each row, so that rows stay apart and integer kernels can be used.
_ACCURACY_FP32: Final = 1
_ACCURACY_INT8: Final = 4


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
    """The embedding [rows, columns] as it is in the graph, under the prefix `name`.

    Attributes:
        block: Neighbours that share a scale.
    """

    name: str
    rows: int
    columns: int
    block: int


class Products(Protocol):
    """Writes the matrices of one graph and their products, all in one number format."""

    def write_embedding(self, parts: GraphParts, matrix: Float32Array, *, block: int) -> Table:
        """Write the embedding [vocab, hidden], in blocks of that size if it has blocks."""
        ...

    def look_up(self, parts: GraphParts, table: Table, *, out: str) -> None:
        """Write `out` = the embedding's rows [batch, tokens, hidden] for `input_ids`."""
        ...

    def multiply(
        self,
        parts: GraphParts,
        left: str,
        *,
        name: str,
        matrix: Float32Array,
        out: str,
        is_gated: bool = False,
    ) -> None:
        """Write `out` = `left` [batch, tokens, K] times `matrix` [N, K] transposed.

        Args:
            parts: The graph.
            left: A value of it.
            name: Prefix of what is written for the matrix.
            matrix: Quantised here.
            out: Name of the result [batch, tokens, N].
            is_gated: `left` is the product of two others, whose few large numbers no static factor
                evens out.
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


class _Blocks(msgspec.Struct, frozen=True, kw_only=True):
    """What number formats in blocks have in common: the embedding's table of 8 bits.

    Attributes:
        block: Weights that share a scale.
        has_integer_inputs: Quantise the inputs of each product too: what CPUs with 8-bit
            dot products are fast at.
    """

    block: int
    has_integer_inputs: bool = True

    def write_embedding(self, parts: GraphParts, matrix: Float32Array, *, block: int) -> Table:
        """Write it as products read it, too: the head may be the same table."""
        return _write_table(parts, EMBEDDING, matrix, block=block)

    def look_up(self, parts: GraphParts, table: Table, *, out: str) -> None:
        """Write one GatherBlockQuantized."""
        parts.constant("embedding.shape", np.array([table.rows, table.columns], np.int64))
        parts.node("Reshape", [f"{table.name}.values", "embedding.shape"], ["embedding.table"])
        parts.node(
            "GatherBlockQuantized",
            ["embedding.table", "input_ids", f"{table.name}.scales"],
            [out],
            bits=8,
            block_size=table.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def multiply_head(
        self, parts: GraphParts, left: str, *, table: Table | None, matrix: Float32Array, out: str
    ) -> None:
        """Read the embedding's table where there is one."""
        table = table or _write_table(parts, HEAD, matrix, block=self.block)
        _multiply_table(parts, left, table=table, accuracy=_accuracy(self), out=out)


class ByteBlocks(_Blocks, frozen=True, kw_only=True):
    """8-bit weights in blocks."""

    def multiply(
        self,
        parts: GraphParts,
        left: str,
        *,
        name: str,
        matrix: Float32Array,
        out: str,
        is_gated: bool = False,  # noqa: ARG002 - a block's scale is its own: the others keep theirs
    ) -> None:
        """Write one MatMulNBits."""
        table = _write_table(parts, name, matrix, block=self.block)
        _multiply_table(parts, left, table=table, accuracy=_accuracy(self), out=out)


class NibbleBlocks(_Blocks, frozen=True, kw_only=True):
    """4-bit weights in blocks, each with its own zero point.

    The head has 8 bits: it is the embedding's table, and 4 are too few there.
    """

    def multiply(
        self,
        parts: GraphParts,
        left: str,
        *,
        name: str,
        matrix: Float32Array,
        out: str,
        is_gated: bool = False,  # noqa: ARG002 - a block's scale is its own: the others keep theirs
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


def _write_table(parts: GraphParts, name: str, matrix: Float32Array, *, block: int) -> Table:
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


def _accuracy(products: _Blocks) -> int:
    return _ACCURACY_INT8 if products.has_integer_inputs else _ACCURACY_FP32
