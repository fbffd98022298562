"""The ONNX graph computes what the numpy forward pass computes, the way a worker feeds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.cache import hash_file
from models.checkpoints.checkpoint import Float32Array
from models.checkpoints.tiny import TinyCheckpoint, tiny_shape
from models.graphs.builder import WEIGHTS_NAME, GraphBuilder, graph_signature, save_graph
from models.graphs.products import ByteBlocks
from models.graphs.reference import RoundedCheckpoint, reference_logits
from models.progress import SilentProgress
from models.proof.runner import GraphRunner, log_softmax
from models.proof.verify import architecture_of, graph_opset

_BLOCK = 32
_SEQUENCE = [5, 17, 200, 3, 99, 99, 41, 7, 180, 62, 11]
# Float arithmetic in another order.
_CLOSE = 2e-4

RunnerOf = Callable[..., GraphRunner]


@pytest.fixture(scope="module")
def checkpoint() -> TinyCheckpoint:
    return TinyCheckpoint()


@pytest.fixture
def runner_of(tmp_path: Path) -> RunnerOf:
    def make(checkpoint: TinyCheckpoint, *, rows: int = 1, is_exact: bool = True) -> GraphRunner:
        products = ByteBlocks(block=_BLOCK, has_integer_inputs=not is_exact)
        builder = GraphBuilder(checkpoint, block=_BLOCK, products=products)
        save_graph(builder.build(SilentProgress()), tmp_path)
        graph = tmp_path / "model.onnx"
        return GraphRunner(graph, architecture_of(checkpoint), rows=rows, max_len=64)

    return make


def exact(checkpoint: TinyCheckpoint, tokens: list[int]) -> Float32Array:
    return reference_logits(RoundedCheckpoint(checkpoint, block=_BLOCK), tokens)


@pytest.mark.parametrize("ties_embedding", [True, False])
def test_a_prompt_gives_the_reference_logits_of_its_last_position(
    runner_of: RunnerOf, *, ties_embedding: bool
) -> None:
    checkpoint = TinyCheckpoint(tiny_shape(ties_embedding=ties_embedding))
    ours = runner_of(checkpoint).prefill(_SEQUENCE)
    np.testing.assert_allclose(ours, exact(checkpoint, _SEQUENCE)[-1], atol=_CLOSE)


def test_tokens_one_by_one_give_the_reference_logits_of_every_position(
    runner_of: RunnerOf, checkpoint: TinyCheckpoint
) -> None:
    runner = runner_of(checkpoint)
    steps = [runner.step(np.array([[token]]), [past])[0] for past, token in enumerate(_SEQUENCE)]
    np.testing.assert_allclose(np.stack(steps), exact(checkpoint, _SEQUENCE), atol=_CLOSE)


@pytest.mark.parametrize("chunk", [1, 3, 4, 10])
def test_a_prompt_in_chunks_gives_the_same_as_at_once(
    runner_of: RunnerOf, checkpoint: TinyCheckpoint, chunk: int
) -> None:
    runner = runner_of(checkpoint)
    np.testing.assert_allclose(
        runner.prefill(_SEQUENCE, chunk=chunk), exact(checkpoint, _SEQUENCE)[-1], atol=_CLOSE
    )


@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_the_logits_of_as_many_last_positions_as_wanted_are_given(
    runner_of: RunnerOf, checkpoint: TinyCheckpoint, wanted: int
) -> None:
    runner = runner_of(checkpoint)
    runner.prefill(_SEQUENCE[:6])
    ours = runner.read(np.array([_SEQUENCE[6:]]), [6], logit_tokens=wanted)[0]
    np.testing.assert_allclose(ours, exact(checkpoint, _SEQUENCE)[-wanted:], atol=_CLOSE)


def test_rows_of_different_length_decode_together_as_alone(
    runner_of: RunnerOf, checkpoint: TinyCheckpoint
) -> None:
    prompts = [_SEQUENCE, _SEQUENCE[2:5], _SEQUENCE[1:9]]
    runner = runner_of(checkpoint, rows=len(prompts))
    for row, prompt in enumerate(prompts):
        runner.prefill(prompt, row=row)
    new = [33, 44, 55]
    together = runner.step(np.array(new)[:, None], [len(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        alone = exact(checkpoint, [*prompt, new[row]])[-1]
        np.testing.assert_allclose(together[row], alone, atol=_CLOSE)


def test_integer_inputs_stay_near_the_exact_distribution(
    runner_of: RunnerOf, checkpoint: TinyCheckpoint
) -> None:
    ours = log_softmax(runner_of(checkpoint, is_exact=False).prefill(_SEQUENCE))
    theirs = log_softmax(exact(checkpoint, _SEQUENCE)[-1])
    assert float((np.exp(theirs) * (theirs - ours)).sum()) < 0.01


def test_rows_do_not_influence_each_other_with_integer_inputs(
    runner_of: RunnerOf, checkpoint: TinyCheckpoint
) -> None:
    runner = runner_of(checkpoint, rows=2, is_exact=False)
    alone = runner.step(np.array([[9]]), [0])
    together = runner.step(np.array([[9], [250]]), [0, 0])
    assert np.array_equal(alone[0], together[0])


def test_a_tied_embedding_is_stored_once(tmp_path: Path, checkpoint: TinyCheckpoint) -> None:
    sizes = []
    for ties_embedding in (True, False):
        folder = tmp_path / str(ties_embedding)
        folder.mkdir()
        tiny = TinyCheckpoint(tiny_shape(ties_embedding=ties_embedding))
        save_graph(GraphBuilder(tiny, block=_BLOCK).build(SilentProgress()), folder)
        sizes.append((folder / WEIGHTS_NAME).stat().st_size)
    shape = checkpoint.shape
    one_table = shape.vocab * shape.hidden * (1 + 4 / _BLOCK)
    # External data is laid out in pages.
    assert sizes[1] - sizes[0] == pytest.approx(one_table, abs=2 * 65_536)
    assert sizes[1] - sizes[0] > one_table / 2


def test_the_same_weights_give_the_same_bytes(tmp_path: Path, checkpoint: TinyCheckpoint) -> None:
    hashes = set()
    for turn in ("first", "second"):
        folder = tmp_path / turn
        folder.mkdir()
        save_graph(GraphBuilder(checkpoint, block=_BLOCK).build(SilentProgress()), folder)
        hashes.add(tuple(hash_file(path) for path in sorted(folder.iterdir())))
    assert len(hashes) == 1


def test_inputs_and_outputs_are_the_ones_that_the_manifest_promises(
    tmp_path: Path, checkpoint: TinyCheckpoint
) -> None:
    save_graph(GraphBuilder(checkpoint, block=_BLOCK).build(SilentProgress()), tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    assert [item.name for item in graph.input[:6]] == [
        *("input_ids", "seqlens_k", "total_len", "logit_tokens", "past.0.key", "past.0.value")
    ]
    assert [item.name for item in graph.output[:3]] == [
        "logits",
        "present.0.key",
        "present.0.value",
    ]
    inputs, outputs = graph_signature(checkpoint.shape)
    assert list(graph.input) == inputs
    assert list(graph.output) == outputs
    assert graph_opset(tmp_path / "model.onnx") == 21
