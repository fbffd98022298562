"""Matrices in fewer bits, laid out as ONNX Runtime's operators read them.

`quantize_blocks` and `quantize_nibbles` for MatMulNBits and GatherBlockQuantized,
`quantize_channels` for MatMulIntegerToFloat.
"""

from __future__ import annotations

import msgspec
import numpy as np

from models.checkpoints.checkpoint import Float32Array, UInt8Array
from models.errors import CheckpointError

ZERO_POINT = 128
"""Implied by both operators for 8-bit data without an explicit zero point."""
_LARGEST = 127
_BYTE_LEVELS = 255
_NIBBLE_LEVELS = 15
# Narrower ranges than a block's own, of which the one with the smallest squared error is taken:
# clipping the outermost weight often leaves finer steps for the other 31.
_NIBBLE_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8)


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
    blocks = _blocks(matrix, block)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(_LARGEST)
    # An all-zero block, or one so small that its scale is not a normal number, becomes zeros.
    scales = _above_zero(scales)
    levels = np.clip(np.rint(blocks / scales), -_LARGEST, _LARGEST)
    return QuantizedMatrix(
        values=(levels + ZERO_POINT).astype(np.uint8), scales=scales[..., 0].astype(np.float32)
    )


def dequantize_blocks(matrix: QuantizedMatrix) -> Float32Array:
    """Return the weights [rows, columns] that the quantised matrix stands for."""
    levels = matrix.values.astype(np.float32) - ZERO_POINT
    return (levels * matrix.scales[..., None]).reshape(matrix.rows, matrix.columns)


class QuantizedNibbles(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix [rows, columns] in blocks of 4-bit levels along its columns.

    Attributes:
        values: [rows, blocks, block / 2], two levels a byte, the earlier one in the lower half.
        scales: [rows, blocks].
        zero_points: [rows, blocks / 2 rounded up], packed alike.
    """

    values: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array


def quantize_nibbles(matrix: Float32Array, *, block: int) -> QuantizedNibbles:
    """Quantise a matrix [rows, columns] to 16 levels a block.

    Raises:
        CheckpointError: Not a finite matrix whose columns fill whole blocks.
    """
    blocks = _blocks(matrix, block)
    low = np.minimum(blocks.min(axis=-1, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=-1, keepdims=True), 0)
    levels, zeros, scales, least = (np.zeros(0, np.float32),) * 4
    for share in _NIBBLE_RANGES:
        found = _nibble_levels(blocks, low * np.float32(share), high * np.float32(share))
        if not least.size:
            levels, zeros, scales, least = found
            continue
        is_better = found[3] < least
        levels, zeros, scales, least = (
            np.where(is_better, new, old)
            for new, old in zip(found, (levels, zeros, scales, least), strict=True)
        )
    return QuantizedNibbles(
        values=_pack_nibbles(levels),
        scales=scales[..., 0],
        zero_points=_pack_nibbles(zeros[..., 0]),
    )


def _nibble_levels(
    blocks: Float32Array, low: Float32Array, high: Float32Array
) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
    """Return levels, zero points, scales that suit these levels best, and squared errors."""
    step = _above_zero((high - low) / np.float32(_NIBBLE_LEVELS))
    zeros = np.rint(-low / step)
    levels = np.clip(np.rint(blocks / step) + zeros, 0, _NIBBLE_LEVELS)
    centred = levels - zeros
    weight = (centred**2).sum(axis=-1, keepdims=True)
    fitted = (centred * blocks).sum(axis=-1, keepdims=True) / np.maximum(weight, 1)
    scales = np.where(fitted > 0, fitted, step)
    errors = ((centred * scales - blocks) ** 2).sum(axis=-1, keepdims=True)
    return levels, zeros, scales, errors


def _pack_nibbles(levels: Float32Array) -> UInt8Array:
    """Put each two along the last axis into a byte; an odd one out goes with a zero."""
    numbers = levels.astype(np.uint8)
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    return np.asarray(numbers[..., 0::2] | numbers[..., 1::2] << 4)


class QuantizedChannels(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix [rows, columns] with one 8-bit range for each row, its transpose stored.

    Attributes:
        values: [columns, rows], `round(weight / scale) + zero_point`.
        scales: [rows].
        zero_points: [rows].
    """

    values: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array


def quantize_channels(matrix: Float32Array) -> QuantizedChannels:
    """Quantise a matrix [rows, columns]; no weight moves by more than its row's scale.

    Raises:
        CheckpointError: Not a finite matrix.
    """
    rows = _blocks(matrix, matrix.shape[-1])[:, 0]
    low = np.minimum(rows.min(axis=1, keepdims=True), 0)
    high = np.maximum(rows.max(axis=1, keepdims=True), 0)
    scales = _above_zero((high - low) / np.float32(_BYTE_LEVELS))
    zeros = np.rint(-low / scales)
    levels = np.clip(np.rint(rows / scales) + zeros, 0, _BYTE_LEVELS)
    return QuantizedChannels(
        values=np.ascontiguousarray(levels.T.astype(np.uint8)),
        scales=scales[:, 0],
        zero_points=zeros[:, 0].astype(np.uint8),
    )


def dequantize_channels(matrix: QuantizedChannels) -> Float32Array:
    """Return the weights [rows, columns] that the quantised matrix stands for."""
    levels = matrix.values.T.astype(np.float32) - matrix.zero_points[:, None]
    return np.asarray(levels * matrix.scales[:, None], np.float32)


def turn_columns(matrix: Float32Array, *, size: int) -> Float32Array:
    """Multiply every `size` neighbours of a row by the Hadamard matrix of that order, of length 1.

    `size` is a power of two that divides the columns. Turning twice changes nothing. Additions
    only, always in the same order: every machine gets the same bits.
    """
    turned = matrix.reshape(-1, size).astype(np.float32)
    step = 1
    while step < size:
        pairs = turned.reshape(-1, size // (2 * step), 2, step)
        turned = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
        step *= 2
    return np.asarray(turned.reshape(matrix.shape) * np.float32(size**-0.5))


def _blocks(matrix: Float32Array, block: int) -> Float32Array:
    """Return a checked matrix as [rows, blocks, block]."""
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
    return matrix.reshape(rows, columns // block, block)


def _above_zero(scales: Float32Array) -> Float32Array:
    """Replace what is no normal number: all that it scales becomes zero."""
    return np.asarray(np.where(scales < np.finfo(np.float32).tiny, 1, scales), np.float32)
