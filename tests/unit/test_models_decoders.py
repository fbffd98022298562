"""Every supported family computes what transformers computes, from weights to 8-bit graph.

The fixtures are tiny random checkpoints with transformers' own logits; `make.py` beside them says
how they came to be. Their sequences are three times as long as their sliding windows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models.checkpoints.checkpoint import Checkpoint, Float32Array
from models.checkpoints.safetensors_reader import FolderSource
from models.checkpoints.tiny import tiny_shape
from models.graphs.builder import GraphBuilder, graph_signature, save_graph
from models.graphs.products import ByteBlocks
from models.graphs.reference import RoundedCheckpoint, reference_logits
from models.graphs.smooth import SmoothedCheckpoint, measure_factors
from models.progress import SilentProgress
from models.proof.runner import GraphRunner, log_softmax
from models.proof.verify import architecture_of, graph_opset

DECODERS = Path(__file__).parents[1] / "data" / "decoders"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]
_BLOCK = 32
# Float arithmetic in another order; logits spread over about 3 to 6.
_CLOSE = 1e-4
# 8-bit weights alone come to 0.003, with 8-bit inputs to 0.0063.
_MAX_MEAN_KL_NATS = 0.01


class Golden:
    """A family's checkpoint, and what transformers makes of two sequences."""

    def __init__(self, family: str) -> None:
        self.source = FolderSource(DECODERS / family)
        recorded = np.load(DECODERS / family / "golden.npz")
        self.sequences: list[list[int]] = recorded["token_ids"].tolist()
        self.logits: npt.NDArray[np.float32] = recorded["logits"]


@pytest.fixture(params=FAMILIES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def runner_of(
    checkpoint: Checkpoint, folder: Path, *, has_integer_inputs: bool, rows: int = 1
) -> GraphRunner:
    products = ByteBlocks(block=_BLOCK, has_integer_inputs=has_integer_inputs)
    builder = GraphBuilder(checkpoint, block=_BLOCK, products=products)
    save_graph(builder.build(SilentProgress()), folder)
    architecture = architecture_of(checkpoint)
    return GraphRunner(folder / "model.onnx", architecture, rows=rows, max_len=64)


def rounded(golden: Golden, tokens: list[int]) -> Float32Array:
    return reference_logits(RoundedCheckpoint(golden.source, block=_BLOCK), tokens)


def mean_kl(exact: Float32Array, ours: Float32Array) -> float:
    wanted, given = log_softmax(exact), log_softmax(ours)
    return float((np.exp(wanted) * (wanted - given)).sum(axis=-1).mean())


def test_the_forward_pass_gives_the_logits_of_transformers(golden: Golden) -> None:
    for tokens, logits in zip(golden.sequences, golden.logits, strict=True):
        np.testing.assert_allclose(reference_logits(golden.source, tokens), logits, atol=_CLOSE)


def test_the_graph_gives_the_same_token_by_token_at_once_and_in_chunks(
    golden: Golden, tmp_path: Path
) -> None:
    runner = runner_of(golden.source, tmp_path, has_integer_inputs=False)
    for tokens in golden.sequences:
        exact = rounded(golden, tokens)
        steps = [runner.step(np.array([[token]]), [past])[0] for past, token in enumerate(tokens)]
        np.testing.assert_allclose(np.stack(steps), exact, atol=_CLOSE)
        at_once = runner.read(np.array([tokens]), [0], logit_tokens=len(tokens))[0]
        np.testing.assert_allclose(at_once, exact, atol=_CLOSE)
        for chunk in (3, 10):
            last = runner.prefill(tokens, chunk=chunk)
            np.testing.assert_allclose(last, exact[-1], atol=_CLOSE)


def test_rows_of_different_length_decode_together_as_alone(golden: Golden, tmp_path: Path) -> None:
    prompts = [golden.sequences[0], golden.sequences[1][:5], golden.sequences[1][3:17]]
    runner = runner_of(golden.source, tmp_path, has_integer_inputs=False, rows=len(prompts))
    for row, prompt in enumerate(prompts):
        runner.prefill(prompt, row=row)
    new = [33, 44, 55]
    together = runner.step(np.array(new)[:, None], [len(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        alone = rounded(golden, [*prompt, new[row]])[-1]
        np.testing.assert_allclose(together[row], alone, atol=_CLOSE)


def test_the_smoothed_8_bit_graph_stays_near_the_logits_of_transformers(
    golden: Golden, tmp_path: Path
) -> None:
    factors = measure_factors(golden.source, golden.sequences[0], SilentProgress())
    smoothed = SmoothedCheckpoint(golden.source, factors)
    runner = runner_of(smoothed, tmp_path, has_integer_inputs=True)
    for tokens, logits in zip(golden.sequences, golden.logits, strict=True):
        ours = runner.read(np.array([tokens]), [0], logit_tokens=len(tokens))[0]
        assert mean_kl(logits, ours) < _MAX_MEAN_KL_NATS


def test_the_graph_has_the_inputs_and_outputs_of_every_other_model(
    golden: Golden, tmp_path: Path
) -> None:
    """A worker need not know of families: only sizes differ."""
    model = GraphBuilder(golden.source, block=_BLOCK).build(SilentProgress())
    save_graph(model, tmp_path)
    assert graph_opset(tmp_path / "model.onnx") == 21
    llama_inputs, llama_outputs = graph_signature(tiny_shape())
    layers = golden.source.shape.layers
    assert {item.name for item in llama_inputs if not item.name.startswith("past.")} == {
        item.name for item in model.graph.input if not item.name.startswith("past.")
    }
    assert len(model.graph.input) == len(llama_inputs) + 2 * (layers - tiny_shape().layers)
    assert len(model.graph.output) == len(llama_outputs) + 2 * (layers - tiny_shape().layers)


def test_a_window_hides_what_lies_before_it(tmp_path: Path) -> None:
    """Two layers with windows of 8, a token itself included, hear 2 x 7 tokens back."""
    golden = Golden("mistral")
    runner = runner_of(golden.source, tmp_path, has_integer_inputs=False)
    first, *rest = golden.sequences[0]

    def difference(distance: int) -> float:
        """How much the first token matters to the one `distance` behind it."""
        logits = [runner.prefill([token, *rest[:distance]]) for token in (first, first + 1)]
        return float(np.abs(logits[0] - logits[1]).max())

    assert difference(14) > 0.1
    assert difference(15) == 0
