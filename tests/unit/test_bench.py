"""What the benchmark compares is comparable: the same weights, in turn, round by round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import onnx
import psutil
import pytest
from gguf import GGUFReader

from bench import workload
from bench.peers.gguf_export import ArtefactCheckpoint, UnknownGraphError, export_gguf
from bench.processes import peak_mb
from bench.report import Aim, build_report
from bench.rounds import Measurement, Rounds
from bench.workload import Job, Run
from edge_worker.adapters.artefact import Artefact
from fleet_protocol.manifest import Architecture, Manifest
from fleet_protocol.messages import ChatMessage
from models.checkpoints.gguf_reader import GgufSource
from models.checkpoints.tiny import (
    MERGES,
    TinyCheckpoint,
    tiny_shape,
    tiny_vocabulary,
    write_tiny_gguf,
)
from models.graphs.builder import GRAPH_NAME, GraphBuilder, save_graph
from models.graphs.variants import products_of
from models.progress import SilentProgress

# llama.cpp's blocks hold 8-bit levels: half a step, and the scale has 11 significant bits.
ROUNDING = 1 / 254 + 2**-11


@pytest.fixture(
    params=list(product([True, False], ["int8-block32", "dynamic-u8"])),
    ids=["tied-blocks", "tied-rows", "untied-blocks", "untied-rows"],
)
def artefact(request: pytest.FixtureRequest, tmp_path: Path) -> Artefact:
    """A tiny model as the factory makes it."""
    is_tied, scheme = request.param
    checkpoint = TinyCheckpoint(tiny_shape(ties_embedding=is_tied))
    source = tmp_path / "source.gguf"
    write_tiny_gguf(source, checkpoint)
    text = GgufSource(source).text_parts()
    (tmp_path / "tokenizer.json").write_text(text.tokenizer_json, "utf-8")
    builder = GraphBuilder(checkpoint, block=32, products=products_of(scheme))
    save_graph(builder.build(SilentProgress()), tmp_path)
    shape = checkpoint.shape
    manifest = Manifest(
        name="tiny",
        version="1",
        graph=GRAPH_NAME,
        tokenizer="tokenizer.json",
        chat_template=text.chat_template,
        context_tokens=shape.context_tokens,
        memory_mb=1,
        stop_tokens=text.stop_tokens,
        opset=21,
        source="random",
        licence="Apache-2.0",
        quantization="int8",
        architecture=Architecture(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab=shape.vocab,
        ),
        files=(),
    )
    return Artefact(folder=tmp_path, manifest=manifest)


def test_llama_cpp_gets_the_very_weights_of_our_graph(artefact: Artefact, tmp_path: Path) -> None:
    ours = ArtefactCheckpoint(artefact.graph, context_tokens=artefact.manifest.context_tokens)
    export_gguf(artefact, tmp_path / "exported.gguf")
    theirs = GgufSource(tmp_path / "exported.gguf")
    assert theirs.shape == ours.shape
    for name in ours.names():
        largest = np.abs(ours.weight(name)).max()
        assert np.abs(theirs.weight(name) - ours.weight(name)).max() <= largest * ROUNDING, name


def test_what_is_read_from_a_graph_is_what_was_put_into_it(artefact: Artefact) -> None:
    read = ArtefactCheckpoint(artefact.graph, context_tokens=artefact.manifest.context_tokens)
    original = TinyCheckpoint(tiny_shape(ties_embedding=read.shape.ties_embedding))
    assert read.shape == original.shape
    assert set(read.names()) == original.weights.keys()
    for name in read.names():
        weight = original.weight(name)
        # What 8 bits cost.
        assert np.linalg.norm(read.weight(name) - weight) <= 0.01 * np.linalg.norm(weight), name


def test_llama_cpp_gets_the_artefacts_own_tokenizer(artefact: Artefact, tmp_path: Path) -> None:
    export_gguf(artefact, tmp_path / "exported.gguf")
    fields = GGUFReader(str(tmp_path / "exported.gguf")).fields
    assert fields["tokenizer.ggml.tokens"].contents() == tiny_vocabulary()
    assert fields["tokenizer.ggml.merges"].contents() == list(MERGES)
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"


def test_a_graph_with_more_than_a_plain_llama_is_refused(artefact: Artefact) -> None:

    model = onnx.load(str(artefact.graph))
    bias = onnx.numpy_helper.from_array(np.zeros(64, np.float32), "layers.0.q.bias")
    model.graph.initializer.append(bias)
    odd = artefact.folder / "odd"
    odd.mkdir()
    save_graph(model, odd)
    with pytest.raises(UnknownGraphError, match=r"layers\.0\.q\.bias"):
        ArtefactCheckpoint(odd / GRAPH_NAME, context_tokens=512)


class Recorder:
    """A program that only says when it was asked."""

    def __init__(self, name: str, asked: list[str], *, tok_s: float) -> None:
        self._name = name
        self._asked = asked
        self._tok_s = tok_s

    def run(self, jobs: Sequence[Job], *, at_once: int = 1) -> Run:
        self._asked.append(self._name)
        took_s = len(jobs) * at_once / self._tok_s
        return Run(took_s=took_s, tokens=len(jobs), first_s=[], generating_s=[])


def test_programs_take_turns_and_another_one_begins_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.rounds.SETTLE_S", 0.0)
    asked: list[str] = []
    peers = {
        "ours": Recorder("ours", asked, tok_s=90.0),
        "theirs": Recorder("theirs", asked, tok_s=60.0),
    }
    job = Job(prompt_tokens=(1,), answer_tokens=1)
    measurement = Measurement(
        figure="tok_s",
        jobs=[job],
        of=lambda run: run.tokens / run.took_s,
        who=("ours", "absent", "theirs"),
    )
    rounds = Rounds(peers)
    for number in range(3):
        rounds.run(number, [measurement])
    assert asked == ["ours", "theirs", "theirs", "ours", "theirs", "ours"]
    assert rounds.ratios(("ours", "tok_s"), ("theirs", "tok_s")) == pytest.approx([1.5] * 3)
    assert rounds.ratios(("ours", "tok_s"), ("absent", "tok_s")) == []


def test_a_ratio_of_several_rounds_is_reported_as_median_and_spread() -> None:
    result = build_report(
        "inference",
        ours={"tok_s": 1.0},
        peers={},
        ratios={"several": [3.0, 1.0, 1.2], "one": 2.0},
        aims={"several": Aim(1.2, at_least=1.15)},
    )
    assert result["ratios"] == {"several": 1.2, "one": 2.0}
    assert result["spreads"] == {"several": (1.0, 3.0), "one": (2.0, 2.0)}
    assert json.loads(json.dumps(result))["aims"]["several"]["met"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells another process's peak")
def test_the_memory_of_a_program_is_not_that_of_the_benchmark() -> None:
    held = bytearray(b"x" * 300_000_000)
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        assert 0 < peak_mb(psutil.Process(child.pid)) < 150 < len(held) / 1e6
    finally:
        child.communicate()


def spell(messages: Sequence[ChatMessage]) -> tuple[int, ...]:
    """Encode by bytes."""
    return tuple(byte for message in messages for byte in message.content.encode())


def test_requests_are_of_mixed_lengths() -> None:
    jobs = workload.mixed(spell, answer_tokens=64)
    lengths = sorted(len(job.prompt_tokens) for job in jobs)
    assert lengths[-1] > 5 * lengths[0]
    assert {job.answer_tokens for job in jobs} == {64, 48, 32}
    assert len(workload.reading(spell, prompt_tokens=256).prompt_tokens) == 256


def test_only_the_beginning_of_prompts_behind_one_rule_is_the_same() -> None:
    first, second = workload.ruled(spell, repeats=2)[:2]
    shared = len(workload.RULES.encode()) * 2
    assert first.prompt_tokens[:shared] == second.prompt_tokens[:shared]
    assert first.prompt_tokens != second.prompt_tokens
    assert msgspec.json.decode(msgspec.json.encode(first), type=Job) == first
