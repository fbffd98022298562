"""Cut the change of a matrix down to a few directions, those that its inputs reach.

A change D [outputs, inputs] does D x to an input x. With L L^T = E[x x^T], the pair of rank r that
is closest to that on the mean is the truncated singular value decomposition of D L, times the
inverse of L (Eckart and Young 1936; for weights: SVD-LLM, arXiv 2403.07378).
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import Float32Array

Float64Array: TypeAlias = npt.NDArray[np.float64]

_FLOOR: Final = 1e-3
"""Share of the mean power that every direction of the inputs is taken to have, seen or not."""
_NEGLIGIBLE: Final = 1e-7
"""Of the strongest direction: weaker ones are noise of the arithmetic."""


def cut_change(
    change: Float32Array, power: Float64Array, rank: int
) -> tuple[Float32Array, Float32Array]:
    """Return A [r, inputs] and B [outputs, r] with B @ A close to the change where inputs go.

    Args:
        change: What was added to a matrix, [outputs, inputs].
        power: Second moments of the matrix's inputs, [inputs, inputs].
        rank: Directions to keep; fewer where the matrix has not so many.
    """
    floor = _FLOOR * float(np.trace(power)) / len(power) or 1.0
    reach = np.linalg.cholesky(power + floor * np.eye(len(power)))
    left, strengths, right = _strongest(change.astype(np.float64) @ reach, rank)
    even = np.sqrt(strengths)
    down = even[:, None] * np.linalg.solve(reach.T, right.T).T
    return down.astype(np.float32), (left * even).astype(np.float32)


def _strongest(matrix: Float64Array, rank: int) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the first singular vectors and values: U [rows, r], S [r], V^T [r, columns].

    By the eigenvectors of the smaller of the two products with itself: many times as fast as the
    decomposition, and exact enough for the strong ones.
    """
    rows, columns = matrix.shape
    if rows > columns:
        left, strengths, right = _strongest(matrix.T, rank)
        return right.T, strengths, left.T
    powers, vectors = np.linalg.eigh(matrix @ matrix.T)
    strengths = np.sqrt(np.maximum(powers[::-1][:rank], 0))
    kept = strengths > _NEGLIGIBLE * strengths[0]
    left, strengths = vectors[:, ::-1][:, :rank][:, kept], strengths[kept]
    return left, strengths, (left.T @ matrix) / strengths[:, None]
