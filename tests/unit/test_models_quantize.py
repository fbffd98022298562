"""Rules of the 8-bit blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import CheckpointError
from models.graphs.quantize import ZERO_POINT, dequantize_blocks, quantize_blocks


@given(seed=st.integers(0, 2**32 - 1), magnitude=st.floats(1e-30, 1e30))
def test_no_weight_moves_by_more_than_half_a_level(seed: int, magnitude: float) -> None:
    matrix = np.random.default_rng(seed).standard_normal((5, 64)).astype(np.float32)
    matrix *= np.float32(magnitude)
    quantized = quantize_blocks(matrix, block=32)
    moved = np.abs(dequantize_blocks(quantized) - matrix).reshape(5, 2, 32)
    assert (moved <= quantized.scales[..., None] * np.float32(0.5001)).all()


def test_the_largest_weight_of_a_block_is_kept_exactly_at_the_last_level() -> None:
    matrix = np.array([[-8.0, *[0.0] * 15, 2.0, *[1.0] * 15]], np.float32)
    quantized = quantize_blocks(matrix, block=16)
    assert quantized.values[0, 0, 0] == ZERO_POINT - 127
    assert quantized.values[0, 1, 0] == ZERO_POINT + 127


def test_a_block_of_zeros_stays_zeros() -> None:
    zeros = np.zeros((2, 32), np.float32)
    assert np.array_equal(dequantize_blocks(quantize_blocks(zeros, block=32)), zeros)


def test_quantising_what_is_on_the_levels_already_changes_nothing() -> None:
    matrix = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    once = quantize_blocks(matrix, block=32)
    again = quantize_blocks(dequantize_blocks(once), block=32)
    assert np.array_equal(once.values, again.values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    matrix = np.ones((2, 32), np.float32)
    matrix[1, 3] = bad
    with pytest.raises(CheckpointError, match="not finite"):
        quantize_blocks(matrix, block=32)


def test_columns_that_do_not_fill_blocks_are_refused() -> None:
    with pytest.raises(CheckpointError, match="blocks of 32"):
        quantize_blocks(np.ones((2, 48), np.float32), block=32)
