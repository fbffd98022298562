"""From a built model to thresholds in its manifest, as its worker then uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edge_worker.adapters.artefact import load_artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest
from fleet_protocol.confidence import read_signs
from fleet_protocol.messages import ChatMessage, ChatRole, Generation
from models.artefacts.build import Build
from models.cache import FactoryCache
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_gguf
from models.cli import cli
from models.progress import SilentProgress
from models.proof.verify import read_manifest, verify_artefact
from models.routing.answers import label_answers
from models.routing.record import recorded_routing
from models.suite import AnyCheck, SuiteItem, load_reasoning, load_suite

ITEMS = tuple(
    SuiteItem(
        id=f"item-{number}",
        family="facts",
        prompt=f"what is number {number}?",
        check=AnyCheck(want=("G", "g", "d") if number % 2 else ("no such text",)),
    )
    for number in range(6)
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_tiny_gguf(home / "tiny.gguf", TinyCheckpoint())
    report = Build(
        tiny_entry(home / "tiny.gguf"), FactoryCache(home / "cache"), SilentProgress()
    ).run()
    return Path(report.path)


def test_a_worker_sees_the_signs_that_the_factory_labels(built: Path) -> None:
    labelled = label_answers(built, ITEMS, SilentProgress())
    engine = OnnxEngine(load_artefact(built), settings=EngineSettings(slots=1, intra_op_threads=1))

    for item, answer in zip(ITEMS, labelled, strict=True):
        turns = [ChatMessage(role=ChatRole.USER, content=item.prompt)]
        wanted = Generation(max_tokens=48)
        engine.add(GenerationRequest(id="a", prompt_tokens=engine.encode(turns), generation=wanted))
        (end,) = (
            event for _ in range(99) for event in engine.step() if isinstance(event, Finished)
        )
        mean, worst, _ = read_signs(end.text, end.logprobs)
        assert answer.mean == pytest.approx(mean, abs=1e-3)
        assert answer.worst == pytest.approx(worst, abs=1e-3)
        assert answer.prompt == item.prompt


def test_label_calibrate_and_what_the_manifest_says_then(built: Path, tmp_path: Path) -> None:
    artefact, data = tmp_path / "artefact", tmp_path / "answers.jsonl"
    shutil.copytree(built, artefact)
    suite = tmp_path / "suite.jsonl"
    items = [msgspec.structs.replace(ITEMS[n % 6], id=f"i-{n}") for n in range(120)]
    suite.write_bytes(b"\n".join(msgspec.json.encode(item) for item in items))

    first = CliRunner().invoke(
        cli, ["label", str(artefact), "--out", str(data), "--suite", str(suite)]
    )
    assert first.exit_code == 0, first.output
    lines = data.read_text().splitlines()
    assert len(lines) == 120
    assert all(set(json.loads(line)) >= {"prompt", "right", "mean", "worst"} for line in lines)
    # What was said is nobody's business.
    assert "text" not in json.loads(lines[0])

    record = tmp_path / "tiny.routing.json"
    second = CliRunner().invoke(
        cli,
        [
            *("calibrate", str(artefact), "--data", str(data), "--error-rate", "0.3"),
            *("--record", str(record), "--json"),
        ],
    )
    assert second.exit_code == 0, second.output
    manifest = read_manifest(artefact)
    fitted = manifest.routing.calibration
    assert fitted is not None
    assert fitted.error_rate == 0.3
    assert json.loads(second.stdout)["calibration"]["bias"] == fitted.bias
    verify_artefact(artefact)

    # A build of the same bytes has what was recorded, another one has not.
    assert recorded_routing("tiny", manifest.files, records=tmp_path) == manifest.routing
    assert recorded_routing("tiny", manifest.files[1:], records=tmp_path) is None
    assert recorded_routing("other", manifest.files, records=tmp_path) is None


def test_questions_of_several_steps_are_no_part_of_the_suite() -> None:
    ids = {item.id for item in load_suite()}
    reasoning = load_reasoning()
    assert len(reasoning) == 60
    assert not ids & {item.id for item in reasoning}
