"""An evaluation asks everything, compares with the weights, and stays beside the artefact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from models.artefacts.build import Build
from models.artefacts.card import CARD_NAME
from models.cache import FactoryCache
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, tiny_shape, write_tiny_gguf
from models.cli import cli
from models.errors import ExitCode
from models.evaluate import Evaluation, Plan, evaluate_artefact, examine
from models.evaluate.fp32 import save_fp32_graph
from models.evaluate.report import EVALUATION_NAME
from models.evaluate.store import store
from models.graphs.builder import GRAPH_NAME
from models.progress import SilentProgress
from models.proof.verify import read_manifest, verify_artefact
from models.suite import SuiteItem

SWITCH = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
ITEMS = msgspec.convert(
    [
        {
            "id": f"{family}-{number}",
            "family": family,
            "language": language,
            "prompt": f"{family} {number}?",
            "check": check,
            "schema": SWITCH if family == "command" else None,
        }
        for family, language, check in (
            ("command", "en", {"kind": "json", "want": {"on": True}}),
            ("command", "zh", {"kind": "json", "want": {"on": False}}),
            ("units", "en", {"kind": "number", "want": 3}),
            ("facts", "en", {"kind": "any", "want": ["the"]}),
        )
        for number in (1, 2, 3)
    ],
    tuple[SuiteItem, ...],
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny artefact that tests copy before they write into it."""
    home = tmp_path_factory.mktemp("built")
    write_tiny_gguf(home / "tiny.gguf", TinyCheckpoint())
    report = Build(
        tiny_entry(home / "tiny.gguf"), FactoryCache(home / "cache"), SilentProgress()
    ).run()
    return Path(report.path)


@pytest.fixture(scope="module")
def fp32_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    save_fp32_graph(TinyCheckpoint(), folder, SilentProgress())
    return folder / GRAPH_NAME


@pytest.fixture(scope="module")
def evaluation(built: Path, fp32_graph: Path) -> Evaluation:
    plan = Plan(items=ITEMS, fp32_graph=fp32_graph, base=built, is_measured=False)
    return evaluate_artefact(built, progress=SilentProgress(), plan=plan)


@pytest.fixture
def artefact(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "artefact")
    return tmp_path / "artefact"


def test_every_family_of_every_language_has_its_score(evaluation: Evaluation) -> None:
    rows = evaluation.answers.families
    assert [(row.language, row.family, row.score.asked) for row in rows] == [
        ("en", "command", 3),
        ("en", "facts", 3),
        ("en", "units", 3),
        ("zh", "command", 3),
    ]
    assert evaluation.answers.total.asked == len(ITEMS)
    assert evaluation.answers.total.right == sum(row.score.right for row in rows)
    assert evaluation.answers.valid_json.asked == 6
    assert not evaluation.is_whole_suite


def test_answers_held_to_a_schema_are_always_json(evaluation: Evaluation) -> None:
    assert evaluation.constrained is not None
    assert evaluation.constrained.total.asked == 6
    assert evaluation.constrained.valid_json.share == 1
    assert evaluation.answers.valid_json.share < 1


def test_eight_bits_are_near_their_weights_and_not_the_same(evaluation: Evaluation) -> None:
    text = evaluation.text
    assert text is not None
    assert text.positions > 3000
    assert 0 < text.mean_kl_nats < 0.05
    assert 0.9 < text.top1_share < 1
    assert text.perplexity == pytest.approx(text.perplexity_fp32, rel=0.05)


def test_the_fp32_graph_of_an_untied_checkpoint_computes_its_weights(tmp_path: Path) -> None:
    save_fp32_graph(TinyCheckpoint(tiny_shape(ties_embedding=False)), tmp_path, SilentProgress())


def test_size_is_that_of_the_graph_against_its_fp32_twin(
    evaluation: Evaluation, fp32_graph: Path
) -> None:
    assert evaluation.size is not None
    on_disk = sum(path.stat().st_size for path in fp32_graph.parent.iterdir())
    assert evaluation.size.fp32_bytes == on_disk
    assert 0.25 < evaluation.size.share < 1
    assert evaluation.size.share == pytest.approx(
        evaluation.size.graph_bytes / evaluation.size.fp32_bytes, abs=1e-4
    )


def test_the_same_artefact_as_base_says_the_same(evaluation: Evaluation) -> None:
    assert evaluation.base is not None
    assert evaluation.base.families == evaluation.answers.families
    assert {example.family for example in evaluation.examples} == {"command", "facts", "units"}
    assert all(example.before == example.after for example in evaluation.examples)


def test_without_an_fp32_graph_nothing_is_claimed_of_it(built: Path) -> None:
    plan = Plan(items=ITEMS[:2], is_measured=False, is_constrained=False)
    found = evaluate_artefact(built, progress=SilentProgress(), plan=plan)
    assert (found.fp32, found.text, found.size, found.constrained) == (None,) * 4
    assert {gate.value for gate in found.gates} == {None}


def test_a_limit_counts_by_family_and_language() -> None:
    assert [item.id for item in Plan(items=ITEMS, limit=1).asked()] == [
        *("command-1", "command-1", "units-1", "facts-1")
    ]
    assert Plan(items=ITEMS).asked() == ITEMS


def test_wrong_answers_are_listed_with_what_was_wanted(built: Path) -> None:
    plan = Plan(items=ITEMS, is_measured=False, is_constrained=False)
    findings = examine(built, progress=SilentProgress(), plan=plan)
    score = findings.evaluation.answers.total
    assert len(findings.wrong) == score.asked - score.right
    assert findings.wrong[0].want == {"on": True}
    assert findings.wrong[0].prompt == "command 1?"


def test_an_evaluation_is_kept_beside_a_sound_artefact(
    artefact: Path, evaluation: Evaluation
) -> None:
    store(evaluation, artefact)
    kept = msgspec.json.decode((artefact / EVALUATION_NAME).read_bytes(), type=Evaluation)
    assert kept == evaluation
    summary = read_manifest(artefact).evaluation
    assert summary is not None
    assert summary.asked == len(ITEMS)
    assert set(summary.families["en"]) == {"command", "facts", "units"}
    assert summary.fp32_share == evaluation.size.share if evaluation.size else None
    assert "| English | command | 3 |" in (artefact / CARD_NAME).read_text("utf-8")
    verify_artefact(artefact)
    assert not [path.name for path in artefact.iterdir() if path.name.startswith(".")]


def own_suite(folder: Path) -> Path:
    path = folder / "own.jsonl"
    lines = (msgspec.json.encode(msgspec.structs.replace(item, schema=None)) for item in ITEMS[:3])
    path.write_bytes(b"\n".join(lines))
    return path


def test_the_command_prints_json_and_lists_wrong_answers(artefact: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    command = ["evaluate", str(artefact), "--suite", str(own_suite(tmp_path)), "--json"]
    ended = CliRunner().invoke(cli, [*command, "--wrong", str(wrong)])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found["answers"]["total"]["asked"] == 3
    assert found["measured"]["memory_mb"] > 0
    missed = found["answers"]["total"]["asked"] - found["answers"]["total"]["right"]
    assert len(wrong.read_text().splitlines()) == missed
    # A suite of one's own says nothing that a manifest should repeat.
    assert not (artefact / EVALUATION_NAME).exists()


def test_the_command_names_a_suite_that_is_not_one(artefact: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}", "utf-8")
    ended = CliRunner().invoke(cli, ["evaluate", str(artefact), "--suite", str(path)])
    assert ended.exit_code == ExitCode.CONFIG
    assert "models: bad.jsonl line 1" in ended.stderr


def test_the_command_asks_only_for_models_that_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path))
    ended = CliRunner().invoke(cli, ["evaluate", "smollm2-135m-instruct-int8"])
    assert ended.exit_code == ExitCode.CONFIG
    assert "next: python -m models build smollm2-135m-instruct-int8" in ended.stderr
