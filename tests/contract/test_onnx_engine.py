"""What the ONNX engine promises beyond the contract: faults, memory, stop tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edge_worker.adapters.artefact import Artefact, load_artefact, resolve_model
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.adapters.onnx_graph import KvGraph
from edge_worker.adapters.tokenizer import ChatTokenizer
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Broke, EngineEvent, Finished, GenerationRequest, ModelError
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import ChatMessage, ChatRole, FinishReason, Generation
from tests.contract import tiny_model

SETTINGS = EngineSettings(slots=3, intra_op_threads=1, prefill_chunk_tokens=8)


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    return tiny_model.build_artefact(tmp_path / "tiny")


@pytest.fixture
def engine(artefact: Artefact) -> OnnxEngine:
    return OnnxEngine(artefact, settings=SETTINGS)


def ask(engine: OnnxEngine, name: str, text: str, *, max_tokens: int = 10) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content=text)])
    wanted = Generation(max_tokens=max_tokens)
    engine.add(GenerationRequest(id=name, prompt_tokens=prompt, generation=wanted))


def drain(engine: OnnxEngine) -> dict[str, EngineEvent]:
    """Return the last event of each request."""
    last: dict[str, EngineEvent] = {}
    while not engine.is_idle:
        last.update((event.id, event) for event in engine.step())
    return last


def answer_alone(engine: OnnxEngine, text: str) -> Finished:
    ask(engine, "alone", text)
    end = drain(engine)["alone"]
    assert isinstance(end, Finished)
    return end


def rewrite(artefact: Artefact, change: Callable[[Manifest], Manifest]) -> None:
    """Change the manifest; its files are described anew, so that only the content is wrong."""
    manifest = change(artefact.manifest)
    files = tuple(tiny_model.describe(artefact.folder, file.path) for file in manifest.files)
    tiny_model.write_manifest(artefact.folder, msgspec.structs.replace(manifest, files=files))


def failure(artefact: Artefact, settings: EngineSettings = SETTINGS) -> ModelError:
    """Return how loading fails."""
    with pytest.raises(ModelError) as caught:
        OnnxEngine(load_artefact(artefact.folder), settings=settings)
    assert caught.value.hint
    return caught.value


def test_a_stop_token_ends_the_answer_and_adds_no_text(
    tmp_path: Path, artefact: Artefact, engine: OnnxEngine
) -> None:
    whole = answer_alone(engine, "hello the world")
    tokenizer = ChatTokenizer(artefact.tokenizer, chat_template="", stop_tokens=())
    first = tokenizer.encode_text(whole.text)[0]
    other = tiny_model.build_artefact(tmp_path / "stopping", stop_tokens=(first,))
    end = answer_alone(OnnxEngine(other, settings=SETTINGS), "hello the world")
    assert (end.text, end.finish, end.tokens) == ("", FinishReason.STOP, 1)
    assert end.logprobs == whole.logprobs[:1]


def test_a_request_the_graph_cannot_read_breaks_alone(engine: OnnxEngine) -> None:
    expected = answer_alone(engine, "hello")
    ask(engine, "good", "hello")
    engine.step()
    engine.add(GenerationRequest(id="bad", prompt_tokens=(10**6,), generation=Generation()))
    ask(engine, "late", "hello")
    ends = drain(engine)
    assert isinstance(ends["bad"], Broke)
    assert ends["bad"].code == "generation_failed"
    assert [ends[name].text for name in ("good", "late")] == [expected.text] * 2  # type: ignore[union-attr]  # both finished


def test_a_batch_that_fails_breaks_only_the_guilty_row(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot get memory for the batch is repeated row by row."""
    expected = answer_alone(engine, "hello")
    for name in ("a", "guilty", "b"):
        ask(engine, name, "hello")

    def fail(_graph: KvGraph, _rows: int, **_options: int) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer")

    alone = KvGraph.decode_alone

    def fail_second(graph: KvGraph, row: int) -> object:
        if engine._rows[row].request.id == "guilty":
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return alone(graph, row)

    monkeypatch.setattr(KvGraph, "decode", fail)
    monkeypatch.setattr(KvGraph, "decode_alone", fail_second)
    ends = drain(engine)
    guilty = ends["guilty"]
    assert isinstance(guilty, Broke)
    assert guilty.code == "out_of_memory"
    for name in ("a", "b"):
        end = ends[name]
        assert isinstance(end, Finished)
        assert (end.text, end.tokens) == (expected.text, expected.tokens)


def test_a_file_with_other_bytes_is_not_loaded(artefact: Artefact) -> None:
    data = bytearray(artefact.graph.read_bytes())
    data[len(data) // 2] ^= 1
    artefact.graph.write_bytes(bytes(data))
    assert failure(artefact).code == "model_damaged"


def test_a_file_cut_short_is_not_loaded(artefact: Artefact) -> None:
    artefact.graph.write_bytes(artefact.graph.read_bytes()[:-10])
    error = failure(artefact)
    assert error.code == "model_damaged"
    assert "bytes instead of" in str(error)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "manifest.json"])
def test_a_missing_file_is_named(artefact: Artefact, name: str) -> None:
    (artefact.folder / name).unlink()
    error = failure(artefact)
    assert error.code == "model_missing"
    assert name in str(error)


def test_a_graph_that_is_no_graph_is_refused(artefact: Artefact) -> None:
    artefact.graph.write_bytes(b"not a graph")
    rewrite(artefact, lambda manifest: manifest)
    assert failure(artefact).code == "model_damaged"


def test_a_graph_with_other_inputs_is_refused(artefact: Artefact) -> None:
    graph = onnx.load(artefact.graph)
    graph.graph.input[0].name = "tokens"
    graph.graph.node[0].input[1] = "tokens"
    onnx.save(graph, artefact.graph)
    rewrite(artefact, lambda manifest: manifest)
    error = failure(artefact)
    assert error.code == "model_wrong_graph"
    assert "input_ids" in str(error)


@pytest.mark.parametrize(
    ("field", "value"), [("layers", 3), ("kv_heads", 2), ("head_dim", 32), ("vocab", 999)]
)
def test_a_graph_of_another_shape_is_refused(artefact: Artefact, field: str, value: int) -> None:
    def change(manifest: Manifest) -> Manifest:
        shape = msgspec.structs.replace(manifest.architecture, **{field: value})
        return msgspec.structs.replace(manifest, architecture=shape)

    rewrite(artefact, change)
    assert failure(artefact).code == "model_wrong_graph"


def test_a_model_whose_logits_are_no_numbers_is_refused(artefact: Artefact) -> None:
    graph = onnx.load(artefact.graph)
    (embedding,) = (t for t in graph.graph.initializer if t.name == "embedding")
    numbers = np.full_like(onnx.numpy_helper.to_array(embedding), np.nan)
    embedding.CopyFrom(onnx.numpy_helper.from_array(numbers, "embedding"))
    onnx.save(graph, artefact.graph)
    rewrite(artefact, lambda manifest: manifest)
    assert failure(artefact).code == "model_wrong_graph"


def test_a_broken_tokenizer_is_refused(artefact: Artefact) -> None:
    artefact.tokenizer.write_text("{}")
    rewrite(artefact, lambda manifest: manifest)
    assert failure(artefact).code == "model_tokenizer"


def test_a_broken_chat_template_is_refused(artefact: Artefact) -> None:
    rewrite(
        artefact,
        lambda manifest: msgspec.structs.replace(manifest, chat_template="{% for x in %}"),
    )
    assert failure(artefact).code == "model_template"


def test_a_manifest_that_is_none_is_refused(artefact: Artefact) -> None:
    (artefact.folder / "manifest.json").write_text('{"name": 1}')
    assert failure(artefact).code == "model_damaged"


def test_a_manifest_of_a_later_format_is_refused(artefact: Artefact) -> None:
    rewrite(artefact, lambda manifest: msgspec.structs.replace(manifest, format=2))
    assert failure(artefact).code == "model_format"


def test_a_manifest_cannot_point_outside_its_folder(artefact: Artefact) -> None:
    outside = tiny_model.describe(artefact.folder, "model.onnx")
    (artefact.folder.parent / "model.onnx").write_bytes(artefact.graph.read_bytes())
    listed = msgspec.structs.replace(outside, path="x/../../model.onnx")
    manifest = msgspec.structs.replace(artefact.manifest, files=(*artefact.manifest.files, listed))
    tiny_model.write_manifest(artefact.folder, manifest)
    assert "outside" in str(failure(artefact))


def test_an_unknown_execution_provider_names_those_there_are(artefact: Artefact) -> None:
    error = failure(artefact, EngineSettings(provider="abacus"))
    assert error.code == "provider_missing"
    assert "cpu" in error.hint


def test_too_little_memory_for_one_request_is_said(artefact: Artefact) -> None:
    def change(manifest: Manifest) -> Manifest:
        shape = msgspec.structs.replace(manifest.architecture, kv_heads=300)
        return msgspec.structs.replace(manifest, architecture=shape)

    rewrite(artefact, change)
    assert failure(artefact, EngineSettings(memory_mb=1)).code == "model_memory"


def test_who_does_not_fit_into_the_memory_waits(artefact: Artefact) -> None:
    limit = tiny_model.CONTEXT_TOKENS
    settings = EngineSettings(slots=3, intra_op_threads=1, max_tokens=limit)
    engine = OnnxEngine(artefact, settings=settings)
    engine._plan = engine._plan._replace(running_tokens=limit)
    for name in ("a", "b", "c"):
        ask(engine, name, "hello", max_tokens=30)
    most = 0
    while not engine.is_idle:
        engine.step()
        most = max(most, len(engine._rows))
    assert most == 2


def test_the_context_is_the_smaller_one_of_model_and_settings(artefact: Artefact) -> None:
    assert OnnxEngine(artefact, settings=SETTINGS).model.context_tokens == 128
    small = EngineSettings(slots=1, max_tokens=64, intra_op_threads=1)
    assert OnnxEngine(artefact, settings=small).model.context_tokens == 64


def test_the_model_says_which_build_it_is(artefact: Artefact, engine: OnnxEngine) -> None:
    assert engine.model.sha256 == artefact.manifest.files[0].sha256


def test_a_full_row_is_used_to_its_last_token(engine: OnnxEngine) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    wanted = Generation(max_tokens=engine.model.context_tokens - len(prompt))
    engine.add(GenerationRequest(id="a", prompt_tokens=prompt, generation=wanted))
    end = drain(engine)["a"]
    assert isinstance(end, Finished)
    assert end.tokens == wanted.max_tokens


def test_the_newest_version_of_a_model_is_found(tmp_path: Path) -> None:
    for version in ("1.9", "1.10", "1.2"):
        tiny_model.build_artefact(tmp_path / "models" / "tiny" / version)
    assert resolve_model("tiny", tmp_path).name == "1.10"


def test_a_model_is_found_by_its_path(artefact: Artefact, tmp_path: Path) -> None:
    assert resolve_model(str(artefact.folder), tmp_path) == artefact.folder


@pytest.mark.parametrize("name", ["absent", "../tiny", "", "."])
def test_an_unknown_model_names_those_there_are(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model.build_artefact(tmp_path / "models" / "tiny" / "1")
    with pytest.raises(ModelError) as caught:
        resolve_model(name, tmp_path)
    assert caught.value.code == "model_unknown"
    assert "tiny" in str(caught.value)
    assert "python -m models build" in caught.value.hint
