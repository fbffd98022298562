"""Symmetric 8-bit blocks, as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

import msgspec
import numpy as np

from models.checkpoint import Float32Array, UInt8Array
from models.errors import CheckpointError

ZERO_POINT = 128
"""Implied by both operators for 8-bit data without an explicit zero point."""
_LARGEST = 127


class QuantizedMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix [rows, columns] in blocks along its columns.

    Attributes:
        values: [rows, blocks, block], `round(weight / scale) + 128`.
        scales: [rows, blocks].
    """

    values: UInt8Array
    scales: Float32Array

    @property
    def rows(self) -> int:
        """Outputs of the matrix."""
        return int(self.values.shape[0])

    @property
    def columns(self) -> int:
        """Inputs of the matrix."""
        return int(self.values.shape[1] * self.values.shape[2])

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return int(self.values.shape[2])


def quantize_blocks(matrix: Float32Array, *, block: int) -> QuantizedMatrix:
    """Quantise a matrix [rows, columns]; no weight moves by more than half its block's scale.

    Raises:
        CheckpointError: Not a finite matrix whose columns fill whole blocks.
    """
    if matrix.ndim != 2 or matrix.shape[1] % block:
        raise CheckpointError(
            f"a matrix of shape {matrix.shape} does not fall into blocks of {block}",
            hint="choose a block size that divides the model's widths",
        )
    if not np.isfinite(matrix).all():
        raise CheckpointError(
            "the checkpoint holds weights that are not finite numbers",
            hint="fetch it again; if it stays so, the checkpoint itself is broken",
        )
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, columns // block, block)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(_LARGEST)
    # An all-zero block, or one so small that its scale is not a normal number, becomes zeros.
    scales = np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)
    levels = np.clip(np.rint(blocks / scales), -_LARGEST, _LARGEST)
    return QuantizedMatrix(
        values=(levels + ZERO_POINT).astype(np.uint8), scales=scales[..., 0].astype(np.float32)
    )


def dequantize_blocks(matrix: QuantizedMatrix) -> Float32Array:
    """Return the weights [rows, columns] that the quantised matrix stands for."""
    levels = matrix.values.astype(np.float32) - ZERO_POINT
    return (levels * matrix.scales[..., None]).reshape(matrix.rows, matrix.columns)
