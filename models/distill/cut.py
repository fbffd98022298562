"""Cut the change of a matrix down to a few directions, those that its inputs reach.

A change D [outputs, inputs] does D x to an input x. With R R = E[x x^T], the pair of rank r that is
closest to that on the mean is the truncated singular value decomposition of D R, times the inverse
of R (Eckart and Young 1936; for weights: SVD-LLM, arXiv 2403.07378).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import Float32Array

_FLOOR: Final = 1e-3
"""Share of the mean power that every direction of the inputs is taken to have, seen or not."""


def cut_change(
    change: Float32Array, power: npt.NDArray[np.float64], rank: int
) -> tuple[Float32Array, Float32Array]:
    """Return A [r, inputs] and B [outputs, r] with B @ A close to the change where inputs go.

    Args:
        change: What was added to a matrix, [outputs, inputs].
        power: Second moments of the matrix's inputs, [inputs, inputs].
        rank: Directions to keep; fewer where the matrix has not so many.
    """
    floor = _FLOOR * float(np.trace(power)) / len(power) or 1.0
    values, vectors = np.linalg.eigh(power + floor * np.eye(len(power)))
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    left, strengths, right = np.linalg.svd(change @ root, full_matrices=False)
    kept = np.sqrt(strengths[:rank])
    down = kept[:, None] * (right[:rank] @ inverse)
    return down.astype(np.float32), (left[:, :rank] * kept).astype(np.float32)
