"""A change of a matrix, cut down to the directions that its inputs reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.checkpoints.adapter import ADAPTER_WEIGHTS, Adapter
from models.distill.cut import cut_change
from models.distill.low_rank import fit_adapter, write_adapter

CHANCE = np.random.default_rng(3)
CHANGE = CHANCE.standard_normal((20, 30)).astype(np.float32)
INPUTS = CHANCE.standard_normal((400, 30)) * np.linspace(0.01, 5, 30)
POWER = INPUTS.T @ INPUTS / len(INPUTS)


def test_at_full_rank_nothing_is_lost() -> None:
    down, up = cut_change(CHANGE, POWER, rank=20)

    np.testing.assert_allclose(up @ down, CHANGE, atol=1e-4)


def test_at_a_low_rank_the_outputs_are_closer_than_those_of_the_plain_decomposition() -> None:
    down, up = cut_change(CHANGE, POWER, rank=6)
    left, strengths, right = np.linalg.svd(CHANGE, full_matrices=False)
    plain = (left[:, :6] * strengths[:6]) @ right[:6]

    ours, theirs = (
        float(np.square(INPUTS @ (CHANGE - kept).T).mean()) for kept in (up @ down, plain)
    )

    assert (down.shape, up.shape) == ((6, 30), (20, 6))
    assert ours < 0.8 * theirs


def test_without_inputs_it_is_the_plain_decomposition() -> None:
    down, up = cut_change(CHANGE, np.zeros((30, 30)), rank=20)

    np.testing.assert_allclose(up @ down, CHANGE, atol=1e-4)


def test_the_directions_that_do_most_for_their_bytes_are_kept() -> None:
    strong = cut_change(CHANGE, POWER, rank=20)
    weak = cut_change(CHANGE / 100, POWER, rank=20)

    kept = fit_adapter({"layers.0.q": weak, "layers.1.q": strong}, size_bytes=50 * 7)

    assert {name: len(down) for name, (down, _) in kept.items()} == {"layers.1.q": 7}


def test_an_adapter_of_many_ranks_is_read_as_it_was_written(tmp_path: Path) -> None:
    pairs = {f"layers.{n}.q": cut_change(CHANGE * (n + 1), POWER, rank=9) for n in range(3)}
    pairs["layers.0.down"] = cut_change(CHANGE, POWER, rank=4)

    write_adapter(tmp_path, pairs, scale=2.0)

    adapter = Adapter(tmp_path)
    for name, (down, up) in pairs.items():
        np.testing.assert_allclose(adapter.delta(name, CHANGE.shape), up @ down, atol=0.02)


@pytest.mark.parametrize("size", [1.0, 1e-4, 500.0])
def test_in_eight_bits_an_adapter_stays_close(tmp_path: Path, size: float) -> None:
    pairs = {"layers.0.q": cut_change(CHANGE * np.float32(size), POWER, rank=20)}

    write_adapter(tmp_path, pairs, megabytes=0.3)

    off = Adapter(tmp_path).delta("layers.0.q", CHANGE.shape) - CHANGE * size
    assert np.linalg.norm(off) < 0.06 * size * np.linalg.norm(CHANGE)
    assert (tmp_path / ADAPTER_WEIGHTS).stat().st_size < 2_000
