"""The ONNX engine computes what a model writes between marks, and shows what stands outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.core.calculator import CalculationGuide
from edge_worker.ports import EngineEvent, Finished, GenerationRequest, Grew
from fleet_protocol.calculation import SPARE_TOKENS, Calculator
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage, ChatRole, FinishReason, Generation, OutputFormat
from tests.contract import calculating_model as model
from tests.contract import tiny_model

SETTINGS = EngineSettings(slots=3, intra_op_threads=1, prefill_chunk_tokens=8)
NO_DRAFTS = EngineSettings(slots=3, intra_op_threads=1, prefill_chunk_tokens=8, draft_tokens=0)
# The prompt ends in a line break, written as this byte is.
START = "Ċ"
RESULT_TOKENS = len(("3", "6", ">>"))
SUM = model.script(START, "<<", "1", "2", "*", "3", "|", "x", "x")
"""After the result comes `>>`, of which each model below says what follows."""


def ask(engine: OnnxEngine, name: str = "a", **wanted: object) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    generation = Generation(**{"max_tokens": 20, **wanted})  # type: ignore[arg-type]  # its fields
    engine.add(GenerationRequest(id=name, prompt_tokens=prompt, generation=generation))


def drain(engine: OnnxEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while not engine.is_idle:
        events += engine.step()
    return events


def answer(engine: OnnxEngine, **wanted: object) -> Finished:
    ask(engine, **wanted)
    events = drain(engine)
    (end,) = (event for event in events if isinstance(event, Finished))
    assert "".join(event.text for event in events if isinstance(event, Grew)) == end.text
    return end


def load(folder: Path, follows: dict[str, tuple[str, ...]], **options: bool) -> OnnxEngine:
    return OnnxEngine(model.build_artefact(folder, follows, **options), settings=SETTINGS)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[OnnxEngine]:
    """Of a model that says `<<12*3|36>>he<|im_end|>`."""
    engine = load(tmp_path / "sum", SUM | model.script(">>", "he", "<|im_end|>"))
    yield engine
    engine.close()


def test_the_result_is_computed_and_the_calculation_hidden(engine: OnnxEngine) -> None:
    end = answer(engine)
    assert (end.text, end.finish, end.fits_output) == ("he", FinishReason.STOP, True)
    # `<<`, five of the expression, the bar, three of the result and its mark, a word, the end.
    assert end.tokens == 11


def test_the_model_would_have_said_something_else(tmp_path: Path) -> None:
    follows = SUM | model.script(">>", "he", "<|im_end|>")
    end = answer(load(tmp_path / "plain", follows, calculates=False), max_tokens=9)
    assert end.text == "<<12*3|xxx"


def test_a_result_says_nothing_of_doubt(engine: OnnxEngine) -> None:
    """Given by the model it would have been absurd: the graph never says a digit after the bar."""
    end = answer(engine)
    assert len(end.logprobs) == end.tokens - RESULT_TOKENS
    assert min(end.logprobs) > -0.1


@pytest.mark.parametrize("most", [1, 20])
def test_a_result_is_read_in_one_run(engine: OnnxEngine, tmp_path: Path, most: int) -> None:
    slow = OnnxEngine(
        model.build_artefact(tmp_path / "slow", SUM | model.script(">>", "he", "<|im_end|>")),
        settings=NO_DRAFTS,
    )
    steps = []
    for one in (engine, slow):
        ask(one, max_tokens=most)
        count = 0
        while not one.is_idle:
            one.step()
            count += 1
        steps.append(count)
    assert steps[0] == steps[1] - RESULT_TOKENS


def test_a_calculation_costs_the_answer_none_of_its_length(engine: OnnxEngine) -> None:
    end = answer(engine, max_tokens=1)
    assert (end.text, end.finish) == ("he", FinishReason.LENGTH)


def test_stop_texts_are_looked_for_in_what_is_shown(tmp_path: Path) -> None:
    follows = SUM | model.script(">>", "he", "ll", "in")
    engine = load(tmp_path / "stop", follows)
    assert answer(engine, stop=("12", "3", "l")).text == "he"
    assert answer(engine, stop=("|36",), max_tokens=3).text == "hellin"


def test_an_expression_that_comes_to_nothing_is_left_to_the_model(tmp_path: Path) -> None:
    follows = model.script(START, "<<", "1", "/", "0", "|", "9", ">>", "he", "<|im_end|>")
    end = answer(load(tmp_path / "none", follows))
    assert (end.text, end.tokens, len(end.logprobs)) == ("he", 9, 9)


def test_a_calculation_without_end_is_cut_off(tmp_path: Path) -> None:
    follows = model.script("1", "+", "1") | model.script(START, "<<", "1")
    end = answer(load(tmp_path / "endless", follows), max_tokens=5)
    assert (end.text, end.finish) == ("", FinishReason.LENGTH)
    assert end.tokens == 5 + SPARE_TOKENS


def test_calculations_get_what_room_the_context_leaves(tmp_path: Path) -> None:
    follows = model.script("1", "+", "1") | model.script(START, "<<", "1")
    engine = load(tmp_path / "endless", follows)
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    for spare in (0, 3):
        most = tiny_model.CONTEXT_TOKENS - len(prompt) - spare
        assert answer(engine, max_tokens=most).tokens == most + spare


def test_room_for_calculations_is_kept_for_a_request(engine: OnnxEngine) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    needed = len(prompt) + 20 + SPARE_TOKENS
    for room, together in ((2 * needed - 1, 1), (2 * needed, 2)):
        engine._plan = engine._plan._replace(running_tokens=room)
        ask(engine, "a")
        ask(engine, "b")
        engine.step()
        assert len(engine._rows) == together
        drain(engine)


def test_neighbours_do_not_disturb_a_calculation(tmp_path: Path) -> None:
    engine = OnnxEngine(model.build_artefact(tmp_path / "chatter"), settings=SETTINGS)
    alone = answer(engine, max_tokens=30)
    for name in ("a", "b", "c", "d"):
        ask(engine, name, max_tokens=30)
    ends = [event for event in drain(engine) if isinstance(event, Finished)]
    assert {(end.text, end.tokens, end.logprobs) for end in ends} == {
        (alone.text, alone.tokens, alone.logprobs)
    }


def test_what_is_held_to_json_may_hold_the_marks(engine: OnnxEngine) -> None:
    """Nothing of it is hidden or computed: it is the text of whoever asked."""
    wanted = OutputFormat(json_schema={"const": "<<1+1|3>>"})
    assert answer(engine, output=wanted, max_tokens=40).text == '"<<1+1|3>>"'


HE_OR_IN = OutputFormat(choices=("in", "he"))


def test_a_calculation_may_stand_in_front_of_a_choice(engine: OnnxEngine) -> None:
    end = answer(engine, output=HE_OR_IN, max_tokens=1)
    assert (end.text, end.finish, end.fits_output) == ("he", FinishReason.LENGTH, True)
    assert (end.tokens, len(end.logprobs)) == (10, 10 - RESULT_TOKENS)
    assert min(end.logprobs) > -0.1
    assert answer(engine, output=OutputFormat(regex="(in|he)+"), max_tokens=3).text == "he"


def test_nobody_makes_a_model_calculate_before_it_chooses(tmp_path: Path) -> None:
    """It would rather say `Ġa`, which is no choice, but of what it may say it prefers `in`."""
    follows = {START: ("Ġa", "in"), "in": ("<<",)}
    engine = load(tmp_path / "straight", follows)
    end = answer(engine, output=HE_OR_IN)
    assert (end.text, end.tokens) == ("in", 1)


def test_an_expression_in_front_of_a_choice_is_closed_whatever_it_is(tmp_path: Path) -> None:
    follows = model.script(START, "<<", "+", "|", "x") | model.script(">>", "he")
    end = answer(load(tmp_path / "none", follows), output=HE_OR_IN)
    # The two marks, a sign, the bar; then the choice.
    assert (end.text, end.tokens) == ("he", 5)


def test_an_expression_in_front_of_a_choice_comes_to_its_end(tmp_path: Path) -> None:
    follows = model.script(START, "<<", "1") | {"1": ("1",), ">>": ("he",)}
    end = answer(load(tmp_path / "endless", follows), output=HE_OR_IN)
    assert end.text == "he"
    assert end.tokens < SPARE_TOKENS


@pytest.mark.parametrize(
    "output",
    [OutputFormat(choices=("<<12*3|x", "<<13")), OutputFormat(regex=r"(<<)*[0-9]{2}\*3\|x")],
)
def test_a_form_that_may_begin_with_the_mark_has_nothing_in_front(
    engine: OnnxEngine, output: OutputFormat
) -> None:
    end = answer(engine, output=output)
    assert (end.text, end.fits_output) == ("<<12*3|x", True)
    # One for the mark, one for each other character.
    assert end.tokens == 7


def test_marks_within_a_form_are_text(engine: OnnxEngine) -> None:
    end = answer(engine, output=OutputFormat(regex="he<<1[|]7>>"))
    assert (end.text, end.fits_output) == ("he<<1|7>>", True)


def test_without_room_for_a_calculation_there_is_none_in_front(engine: OnnxEngine) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    most = tiny_model.CONTEXT_TOKENS - len(prompt) - SPARE_TOKENS
    assert answer(engine, output=HE_OR_IN, max_tokens=most).text == "he"
    assert answer(engine, output=HE_OR_IN, max_tokens=most + 1).text == "in"


def test_a_guide_takes_nothing_but_the_result() -> None:
    calculator = Calculator(
        piece_of=lambda token: bytes([token]), encode=lambda text: text.encode()
    )
    guide = CalculationGuide(calculator)
    assert guide.allowed_prefix(tuple(b"<<1+1|3>>")) == len("<<1+1|")
    for token in b"<<1+1|":
        assert guide.is_free
        guide.accept(token)
    assert (guide.is_free, guide.may_end, guide.is_complete) == (False, False, False)
    assert bytes(guide.forced()) == b"2>>"
    with pytest.raises(RejectedError) as caught:
        guide.accept(ord("3"))
    assert caught.value.code == "output_broken"
    for token in guide.forced():
        guide.accept(token)
    assert guide.may_end
