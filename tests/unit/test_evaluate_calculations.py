"""What a model writes between marks is computed and hidden here as on a board."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

from edge_worker.adapters.artefact import Artefact, load_artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest
from edge_worker.service import golden_report
from fleet_protocol.calculation import SPARE_TOKENS
from fleet_protocol.manifest import GoldenPrompt
from fleet_protocol.messages import Generation
from models.catalog import GoldenCheck
from models.evaluate import Plan, examine
from models.evaluate.run import Answerer, Question
from models.progress import SilentProgress
from models.proof.calculations import AnswerReader
from models.proof.runner import GraphRunner
from models.proof.verify import ask_golden, promise, text_of
from models.suite import SuiteItem
from tests.contract import calculating_model
from tests.contract.calculating_model import script

PROMPTS = [
    [1, 70, 71, 72, 73, 74, 75, 76, 77, 78, last] for last in (50, 52, 53, 55, 57, 58, 59, 60)
]
SUM = script("Ċ", "<<", "1", "2", "*", "3", "|", "x") | script(">>", "he", "<|im_end|>")
ITEM = {
    "id": "threshold-1",
    "family": "threshold",
    "language": "en",
    "prompt": "is it?",
    "check": {"kind": "first_word", "want": "he"},
}


@pytest.fixture(scope="module")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return calculating_model.build_artefact(tmp_path_factory.mktemp("chatter"))


@pytest.fixture(scope="module")
def adding(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A model that says `<<12*3|36>>he`, and without help `<<12*3|xxx` for ever."""
    return calculating_model.build_artefact(tmp_path_factory.mktemp("adding"), SUM)


def reader_of(artefact: Artefact) -> AnswerReader:
    return AnswerReader(Tokenizer.from_file(str(artefact.tokenizer)), calculates=True)


def runner(artefact: Artefact, *, rows: int = 1) -> GraphRunner:
    return GraphRunner(artefact.graph, artefact.manifest.architecture, rows=rows, max_len=128)


def alone(artefact: Artefact, prompt: list[int], limit: int) -> tuple[int, ...]:
    guide = reader_of(artefact).guide()
    return runner(artefact).answer(prompt, max_tokens=limit, stops=(2,), guide=guide).tokens


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_many_rows_calculate_as_each_prompt_does_alone(chatter: Artefact, rows: int) -> None:
    reader = reader_of(chatter)
    limits = [12, 3, 20, 1, 12, 9, 5, 20]
    questions = [
        Question(
            tokens=tuple(prompt), max_tokens=limit, spare_tokens=SPARE_TOKENS, guide=reader.guide()
        )
        for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    said = Answerer(runner(chatter, rows=rows), stops=(2,)).answer_all(
        questions, advance=lambda *_: None
    )
    answers = [answer.tokens for answer in said]
    assert answers == [
        alone(chatter, prompt, limit) for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    assert any(len(answer) > limit for answer, limit in zip(answers, limits, strict=True))


def test_a_worker_shows_what_is_judged_here(chatter: Artefact) -> None:
    engine = OnnxEngine(chatter, settings=EngineSettings(slots=1, intra_op_threads=1))
    reader = reader_of(chatter)
    hidden = 0
    for prompt in PROMPTS:
        wanted = Generation(max_tokens=20)
        engine.add(GenerationRequest(id="a", prompt_tokens=tuple(prompt), generation=wanted))
        (end,) = (
            event for _ in range(99) for event in engine.step() if isinstance(event, Finished)
        )
        shown = reader.read(alone(chatter, prompt, 20))
        assert shown.text == end.text
        hidden += shown.hidden_tokens
    assert hidden > len(PROMPTS)


def test_what_is_shown_is_judged(adding: Artefact) -> None:
    items = msgspec.convert([ITEM], tuple[SuiteItem, ...])
    plan = Plan(items=items, base=adding.folder, is_measured=False, is_constrained=False)
    found = examine(adding.folder, progress=SilentProgress(), plan=plan)
    assert found.evaluation.answers.total.right == 1
    assert found.evaluation.base is not None
    assert found.evaluation.base.total.right == 1


def test_the_marks_of_a_model_that_does_not_calculate_are_text(tmp_path: Path) -> None:
    plain = calculating_model.build_artefact(tmp_path, SUM, calculates=False)
    items = msgspec.convert([ITEM], tuple[SuiteItem, ...])
    plan = Plan(items=items, is_measured=False, is_constrained=False)
    (wrong,) = examine(plain.folder, progress=SilentProgress(), plan=plan).wrong
    assert wrong.answer.startswith("<<12*3|x")


def test_a_golden_prompt_promises_what_is_shown(adding: Artefact) -> None:
    text = text_of(adding.folder, adding.manifest)
    checks = [GoldenCheck(prompt="hello", tokens=(1,), contains="he")]
    (golden,), drifted = ask_golden(runner(adding), text, checks, reader=reader_of(adding))
    assert (golden.expect_text, golden.hidden_tokens) == ("he", 9)
    assert len(golden.expect_tokens) == 10
    assert drifted == ("hello",)
    manifest = msgspec.structs.replace(adding.manifest, golden=(golden,))
    engine = OnnxEngine(load_artefact(adding.folder), settings=EngineSettings(slots=1))
    assert golden_report(engine, manifest.golden).wrong == ()
    other = msgspec.structs.replace(golden, expect_text="she")
    assert golden_report(engine, [other]).wrong == (0,)


def test_a_promise_counts_what_is_shown(tmp_path: Path) -> None:
    follows = SUM | script(">>", "he", "ll", "in", "he")
    endless = calculating_model.build_artefact(tmp_path, follows)
    text = text_of(endless.folder, endless.manifest)
    checks = [GoldenCheck(prompt="hello")]
    (golden,), _ = ask_golden(runner(endless), text, checks, reader=reader_of(endless))
    assert golden.expect_text == "hellinhellinhell"
    engine = OnnxEngine(endless, settings=EngineSettings(slots=1))
    assert golden_report(engine, [golden]).wrong == ()


def test_where_nothing_was_clear_nothing_is_promised(adding: Artefact) -> None:
    engine = OnnxEngine(load_artefact(adding.folder), settings=EngineSettings(slots=1))
    prompt = engine.encode([])
    asked = GoldenPrompt(messages=(), prompt_tokens=len(prompt), expect_tokens=(), expect_text="")
    assert golden_report(engine, [promise(asked, (), reader_of(adding))]).wrong == ()


def test_a_promise_never_ends_within_a_calculation(adding: Artefact) -> None:
    reader = reader_of(adding)
    line_break = Tokenizer.from_file(str(adding.tokenizer)).token_to_id("Ċ")
    said = alone(adding, [1, 70, 71, line_break], 20)
    assert reader.read(said).text == "he"
    for count in range(len(said)):
        first = reader.begin_of(said[:count], most=8)
        assert first in {(), said[:9]}
    assert reader.begin_of(said, most=8) == said
    assert reader.begin_of(said, most=0) == said[:9]
