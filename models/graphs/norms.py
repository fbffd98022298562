"""The RMS norms of a graph.

Nothing but operators that ONNX's checker or ONNX Runtime's contributed set knows, so that a graph
can be checked and also runs where a newer opset's kernels are missing.
"""

from __future__ import annotations

import numpy as np

from models.checkpoints.checkpoint import FINAL_NORM, Float32Array
from models.graphs.products import GraphParts


class NormWriter:
    """Writes the norms of one graph."""

    def __init__(self, parts: GraphParts, *, epsilon: float) -> None:
        self._parts = parts
        self._epsilon = epsilon
        self._widths: set[int] = set()

    def plain(self, hidden: str, name: str, gain: Float32Array) -> str:
        """Norm [.., width] in ONNX's own operators."""
        node, constant = self._parts.node, self._parts.constant
        constant(name, gain)
        constant(f"{name}.axis", np.array([-1], np.int64))
        constant(f"{name}.epsilon", np.array([self._epsilon], np.float32))
        square, mean, root = f"{name}.square", f"{name}.mean", f"{name}.root"
        node("Mul", [hidden, hidden], [square])
        node("ReduceMean", [square, f"{name}.axis"], [mean], keepdims=1)
        node("Add", [mean, f"{name}.epsilon"], [f"{mean}.kept_off_zero"])
        node("Sqrt", [f"{mean}.kept_off_zero"], [root])
        node("Div", [hidden, root], [f"{name}.unit"])
        node("Mul", [f"{name}.unit", name], [f"{name}.out"])
        return f"{name}.out"

    def rows(self, hidden: str, name: str, gain: Float32Array) -> str:
        """Norm every `len(gain)` neighbours of [batch, tokens, width] by themselves.

        One pass of the fused norm, which adds zeros here: the one without an addition is in no
        operator set that ONNX's checker knows at this opset.
        """
        width = len(gain)
        self._prepare_rows(width)
        self._parts.constant(name, gain)
        self._parts.node("Reshape", [hidden, f"rows.{width}"], [f"{name}.rows"])
        self._parts.node(
            "SkipSimplifiedLayerNormalization",
            [f"{name}.rows", f"zeros.{width}", name],
            [f"{name}.normed"],
            epsilon=self._epsilon,
        )
        self._parts.node("Reshape", [f"{name}.normed", "rows.end"], [f"{name}.out"])
        return f"{name}.out"

    def skip(self, residual: str, branch: str, name: str, gain: Float32Array) -> tuple[str, str]:
        """Add the branch to the residual stream; return (normed sum, sum).

        Behind the last norm nobody reads the sum, and it is not written.
        """
        self._parts.constant(name, gain)
        outputs = [f"{name}.out", "", "", f"{name}.residual"]
        self._parts.node(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, name],
            outputs[:1] if name == FINAL_NORM else outputs,
            epsilon=self._epsilon,
        )
        return outputs[0], outputs[3]

    def _prepare_rows(self, width: int) -> None:
        node, constant = self._parts.node, self._parts.constant
        if not self._widths:
            # [batch, tokens, -1]: the shape that rows are put back into.
            constant("rows.rest", np.array([-1], np.int64))
            node("Shape", ["input_ids"], ["rows.start"])
            node("Concat", ["rows.start", "rows.rest"], ["rows.end"], axis=0)
        if width not in self._widths:
            self._widths.add(width)
            constant(f"zeros.{width}", np.zeros((1, 1, width), np.float32))
            constant(f"rows.{width}", np.array([-1, 1, width], np.int64))
