"""The same graph with its weights as they came: 32-bit floats, what quantisation is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from models.checkpoints.checkpoint import EMBEDDING, HEAD, Checkpoint, Float32Array
from models.errors import VerificationError
from models.graphs.builder import GRAPH_NAME, GraphBuilder, save_graph
from models.graphs.products import GraphParts, Table
from models.graphs.reference import reference_logits
from models.progress import Progress
from models.proof.runner import GraphRunner, log_softmax
from models.proof.verify import architecture_of

# 32-bit sums in another order; a wrong graph is off by whole nats.
_MAX_DRIFT_NATS: Final = 0.01
_PROBED_TOKENS: Final = 24


class FullFloats:
    """`Products` over matrices that nobody rounded; slow and large, and right."""

    def write_embedding(
        self,
        parts: GraphParts,
        matrix: Float32Array,
        *,
        block: int,  # noqa: ARG002 - there are none
    ) -> Table:
        """Write it as it is."""
        parts.constant(f"{EMBEDDING}.weight", matrix)
        rows, columns = matrix.shape
        return Table(name=EMBEDDING, rows=rows, columns=columns, block=1)

    def look_up(self, parts: GraphParts, table: Table, *, out: str) -> None:
        """Write one Gather."""
        parts.node("Gather", [f"{table.name}.weight", "input_ids"], [out], axis=0)

    def multiply(
        self,
        parts: GraphParts,
        left: str,
        *,
        name: str,
        matrix: Float32Array,
        out: str,
        is_gated: bool = False,  # noqa: ARG002 - nothing is rounded
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


def save_fp32_graph(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write the graph and prove it against the numpy forward pass.

    Raises:
        VerificationError: It computes something else than the weights say.
    """
    progress.step("fp32", "the same weights, not quantised")
    save_graph(GraphBuilder(checkpoint, block=1, products=FullFloats()).build(progress), folder)
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
