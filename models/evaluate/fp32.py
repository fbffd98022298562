"""The same graph with its weights as they came: 32-bit floats, what quantisation is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from models.checkpoint import EMBEDDING, HEAD, Checkpoint, Float32Array
from models.errors import VerificationError
from models.graph import GRAPH_NAME, GraphBuilder, save_graph
from models.products import GraphParts, Table
from models.progress import Progress
from models.reference import reference_logits
from models.runner import GraphRunner, log_softmax
from models.verify import architecture_of

# 32-bit sums in another order; a wrong graph is off by whole nats.
_MAX_DRIFT_NATS: Final = 0.01
_PROBED_TOKENS: Final = 24


class FullFloats:
    """`Products` over matrices that nobody rounded; slow and large, and right."""

    def multiply(
        self, parts: GraphParts, left: str, *, name: str, matrix: Float32Array, out: str
    ) -> None:
        """Write one product with the matrix as it is stored, [N, K]."""
        parts.constant(f"{name}.weight", matrix)
        parts.node("FusedMatMul", [left, f"{name}.weight"], [out], transB=1)

    def multiply_head(
        self, parts: GraphParts, left: str, *, table: Table | None, matrix: Float32Array, out: str
    ) -> None:
        """Read the embedding's weight where the two are tied."""
        if table is None:
            self.multiply(parts, left, name=HEAD, matrix=matrix, out=out)
            return
        parts.node("FusedMatMul", [left, f"{table.name}.weight"], [out], transB=1)


class Fp32GraphBuilder(GraphBuilder):
    """Connects the nodes as `GraphBuilder` does; its embedding is not rounded either."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, block=1, products=FullFloats())

    def _write_table(self) -> Table:
        rows, columns = self._shape.vocab, self._shape.hidden
        self._constant(f"{EMBEDDING}.weight", self._checkpoint.weight(EMBEDDING))
        return Table(name=EMBEDDING, rows=rows, columns=columns, block=1)

    def _look_up(self, table: Table) -> str:
        self._node("Gather", [f"{table.name}.weight", "input_ids"], ["embedded"], axis=0)
        return "embedded"


def save_fp32_graph(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write the graph and prove it against the numpy forward pass.

    Raises:
        VerificationError: It computes something else than the weights say.
    """
    progress.step("fp32", "the same weights, not quantised")
    save_graph(Fp32GraphBuilder(checkpoint).build(progress), folder)
    vocab = checkpoint.shape.vocab
    tokens = [(7 * place + 3) % vocab for place in range(_PROBED_TOKENS)]
    runner = GraphRunner(folder / GRAPH_NAME, architecture_of(checkpoint))
    ours = runner.read(np.array([tokens], np.int64), [0], logit_tokens=len(tokens))[0]
    drift = np.abs(log_softmax(ours) - log_softmax(reference_logits(checkpoint, tokens))).max()
    if not drift <= _MAX_DRIFT_NATS:
        raise VerificationError(
            f"the fp32 graph is {drift:.3f} nats from its weights",
            hint="run the same command with --force; if it stays, this CPU computes it wrongly",
        )
