"""A change of a matrix, cut down to the directions that its inputs reach."""

from __future__ import annotations

import numpy as np

from models.distill.cut import cut_change

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
