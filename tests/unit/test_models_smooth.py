"""Smoothing changes the weights, never the function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.checkpoints.checkpoint import Checkpoint, layer_weight
from models.checkpoints.tiny import TinyCheckpoint, tiny_shape
from models.graphs.builder import GraphBuilder, save_graph
from models.graphs.reference import reference_logits
from models.graphs.smooth import SmoothedCheckpoint, measure_factors
from models.progress import SilentProgress
from models.proof.runner import GraphRunner, log_softmax
from models.proof.verify import architecture_of

_TOKENS = [5, 17, 200, 3, 99, 99, 41, 7, 180, 62, 11]


def with_outliers(architecture: str = "llama") -> TinyCheckpoint:
    """Two channels run forty times as large as the rest, as they do in trained decoders."""
    checkpoint = TinyCheckpoint(tiny_shape(architecture))
    for layer in range(checkpoint.shape.layers):
        for norm, matrices in (("attention_norm", "q k v"), ("feed_forward_norm", "gate up")):
            checkpoint.weights[layer_weight(layer, norm)][[3, 40]] *= 40
            for matrix in matrices.split():
                checkpoint.weights[layer_weight(layer, matrix)][:, [3, 40]] /= 40
    return checkpoint


def smoothed(checkpoint: TinyCheckpoint) -> SmoothedCheckpoint:
    factors = measure_factors(checkpoint, _TOKENS, SilentProgress())
    return SmoothedCheckpoint(checkpoint, factors)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_smoothed_checkpoint_computes_the_same(architecture: str) -> None:
    checkpoint = with_outliers(architecture)
    np.testing.assert_allclose(
        reference_logits(smoothed(checkpoint), _TOKENS),
        reference_logits(checkpoint, _TOKENS),
        atol=1e-4,
    )


def test_factors_are_powers_of_two_and_not_all_one() -> None:
    factors = measure_factors(with_outliers(), _TOKENS, SilentProgress())
    for factor in factors.values():
        mantissas, _ = np.frexp(factor)
        assert (mantissas == 0.5).all()
    assert factors["layers.0.q"][3] > factors["layers.0.q"][4]


def test_smoothing_brings_the_graph_nearer_to_its_weights(tmp_path: Path) -> None:
    checkpoint = with_outliers()
    exact = log_softmax(reference_logits(checkpoint, _TOKENS)[-1])

    def divergence(of: Checkpoint, name: str) -> float:
        folder = tmp_path / name
        folder.mkdir()
        save_graph(GraphBuilder(of, block=32).build(SilentProgress()), folder)
        runner = GraphRunner(folder / "model.onnx", architecture_of(of), max_len=64)
        ours = log_softmax(runner.prefill(_TOKENS))
        return float((np.exp(exact) * (exact - ours)).sum())

    assert divergence(smoothed(checkpoint), "smoothed") < divergence(checkpoint, "plain") / 2
