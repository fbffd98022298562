"""The ONNX engine holds answers to the form asked for, with any neighbour and any draft."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.adapters.output_guide import GrammarGuides
from edge_worker.adapters.tokenizer import ChatTokenizer
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import EngineEvent, Finished, GenerationRequest, Grew
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage, ChatRole, FinishReason, Generation, OutputFormat
from tests.contract import tiny_model

CHOICES = OutputFormat(choices=("in the hall", "in the hell", "other"))
SCHEMA = OutputFormat(
    json_schema={
        "type": "object",
        "properties": {"the_long_name_of_a_device": {"enum": ["lamp", "fan"]}},
        "required": ["the_long_name_of_a_device"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return tiny_model.build_artefact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def guides(artefact: Artefact) -> GrammarGuides:
    manifest = artefact.manifest
    tokenizer = ChatTokenizer(
        artefact.tokenizer,
        chat_template=manifest.chat_template,
        stop_tokens=manifest.stop_tokens,
    )
    return GrammarGuides(
        tokenizer, vocab=manifest.architecture.vocab, stop_tokens=manifest.stop_tokens
    )


@pytest.fixture
def engine(artefact: Artefact, guides: GrammarGuides) -> Iterator[OnnxEngine]:
    settings = EngineSettings(slots=3, intra_op_threads=1, prefill_chunk_tokens=8)
    engine = OnnxEngine(artefact, settings=settings, guides=guides)
    yield engine
    engine.close()


def ask(engine: OnnxEngine, name: str, output: OutputFormat | None, **options: float) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    wanted = Generation(max_tokens=60, output=output, **options)  # type: ignore[arg-type]  # options are numbers here
    engine.add(GenerationRequest(id=name, prompt_tokens=prompt, generation=wanted))


def drain(engine: OnnxEngine) -> tuple[dict[str, Finished], list[EngineEvent], int]:
    """Return the ends, all events and how many steps it took."""
    events: list[EngineEvent] = []
    steps = 0
    while not engine.is_idle:
        events += engine.step()
        steps += 1
    return {event.id: event for event in events if isinstance(event, Finished)}, events, steps


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_is_one_of_the_choices(engine: OnnxEngine, temperature: float) -> None:
    ask(engine, "a", CHOICES, temperature=temperature, seed=3)
    end = drain(engine)[0]["a"]
    assert end.text in (CHOICES.choices or ())
    assert end.finish is FinishReason.STOP
    assert end.fits_output


def test_an_answer_is_valid_under_the_schema_with_neighbours_as_alone(engine: OnnxEngine) -> None:
    ask(engine, "alone", SCHEMA)
    alone = drain(engine)[0]["alone"]
    assert json.loads(alone.text)["the_long_name_of_a_device"] in {"lamp", "fan"}
    for name, output in (("free", None), ("held", SCHEMA), ("choice", CHOICES)):
        ask(engine, name, output)
    ends, events, _ = drain(engine)
    assert ends["held"].text == alone.text
    assert ends["held"].logprobs == alone.logprobs
    assert "".join(e.text for e in events if isinstance(e, Grew) and e.id == "held") == alone.text


def test_what_the_form_leaves_no_choice_about_is_checked_in_few_runs(engine: OnnxEngine) -> None:
    ask(engine, "a", SCHEMA)
    ends, _, steps = drain(engine)
    assert steps < ends["a"].tokens / 2


def test_confidence_is_what_the_model_thinks_not_what_the_form_leaves(engine: OnnxEngine) -> None:
    """A random model finds the forced tokens absurd, however certain they are."""
    ask(engine, "a", SCHEMA)
    end = drain(engine)[0]["a"]
    assert sum(end.logprobs) / len(end.logprobs) < -1


def test_an_answer_cut_short_does_not_fit(engine: OnnxEngine) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="hello")])
    wanted = Generation(max_tokens=5, output=SCHEMA)
    engine.add(GenerationRequest(id="a", prompt_tokens=prompt, generation=wanted))
    end = drain(engine)[0]["a"]
    assert (end.finish, end.fits_output) == (FinishReason.LENGTH, False)


def test_a_wrong_form_is_refused(engine: OnnxEngine) -> None:
    with pytest.raises(RejectedError) as refusal:
        ask(engine, "a", OutputFormat(regex="("))
    assert refusal.value.code == "bad_output_format"
    assert engine.is_idle
