"""Every engine holds an answer to its form, or refuses to."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import EngineEvent, Finished, GenerationRequest, InferenceEngine
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, OutputFormat
from tests.contract import tiny_model

CHOICES = OutputFormat(choices=("yes", "no", "not sure"))
COMMAND = OutputFormat(
    json_schema={
        "type": "object",
        "properties": {
            "device": {"type": "string", "maxLength": 5},
            "action": {"enum": ["on", "off"]},
            "value": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["device", "action", "value"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return tiny_model.build_artefact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["echo", "onnx"])
def engine(request: pytest.FixtureRequest, artefact: Artefact) -> Iterator[InferenceEngine]:
    engine: InferenceEngine
    if request.param == "echo":
        engine = EchoEngine(slots=3, context_tokens=256, tokens_per_step=1)
    else:
        engine = OnnxEngine(artefact, settings=EngineSettings(slots=3, intra_op_threads=1))
    yield engine
    engine.close()


@pytest.fixture
def model(artefact: Artefact) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(artefact, settings=EngineSettings(slots=3, intra_op_threads=1))
    yield engine
    engine.close()


def ask(engine: InferenceEngine, name: str, **wanted: object) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="Is it on? yes or no")])
    generation = Generation(**wanted)  # type: ignore[arg-type]  # fields of it
    engine.add(GenerationRequest(id=name, prompt_tokens=prompt, generation=generation))


def drain(engine: InferenceEngine) -> dict[str, Finished]:
    events: list[EngineEvent] = []
    while not engine.is_idle:
        events += engine.step()
    return {event.id: event for event in events if isinstance(event, Finished)}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_answer_is_one_of_the_choices(engine: InferenceEngine, temperature: float) -> None:
    for seed in range(4):
        ask(engine, str(seed), output=CHOICES, temperature=temperature, seed=seed)
    ends = drain(engine)
    assert len(ends) == 4
    for end in ends.values():
        assert end.text in (CHOICES.choices or ())
        assert end.fits_output


def test_half_an_answer_says_that_it_does_not_fit(engine: InferenceEngine) -> None:
    ask(engine, "short", output=OutputFormat(choices=("a very long choice indeed",)), max_tokens=1)
    assert not drain(engine)["short"].fits_output


def test_an_answer_without_a_form_always_fits(engine: InferenceEngine) -> None:
    ask(engine, "free", max_tokens=1)
    assert drain(engine)["free"].fits_output


def test_a_form_that_the_echo_engine_does_not_know_is_refused() -> None:
    engine = EchoEngine()
    for output in (COMMAND, OutputFormat(regex="a")):
        with pytest.raises(RejectedError) as caught:
            ask(engine, "1", output=output)
        assert caught.value.code == "unsupported_output_format"
    assert engine.is_idle
    ask(engine, "1", output=OutputFormat(json=True), max_tokens=200)
    assert json.loads(drain(engine)["1"].text)["echo"].startswith("Is it on?")


def test_a_model_that_knows_nothing_still_answers_valid_json(model: OnnxEngine) -> None:
    for seed in range(6):
        temperature = 0.0 if seed == 0 else 1.5
        wanted = {"temperature": temperature, "seed": seed, "max_tokens": 80}
        ask(model, str(seed), output=COMMAND, **wanted)
    ask(model, "free", max_tokens=80)
    ends = drain(model)
    for seed in range(6):
        end = ends[str(seed)]
        assert end.fits_output
        value = json.loads(end.text)
        assert list(value) == ["device", "action", "value"]
        assert value["action"] in {"on", "off"}
        assert 0 <= value["value"] <= 99
        assert json.dumps(value, ensure_ascii=False) == end.text


def test_a_form_that_leaves_no_choice_is_written_out(model: OnnxEngine) -> None:
    wanted = {"state": "kitchen light", "ok": [1, 2]}
    ask(model, "1", output=OutputFormat(json_schema={"const": wanted}), max_tokens=60)
    end = drain(model)["1"]
    assert (end.text, end.fits_output) == (json.dumps(wanted), True)


@pytest.mark.parametrize(
    ("output", "code"),
    [
        (OutputFormat(regex="(a"), "bad_output_format"),
        (OutputFormat(json_schema={"uniqueItems": True}), "unsupported_output_format"),
    ],
)
def test_a_form_that_cannot_be_is_refused_and_disturbs_nobody(
    model: OnnxEngine, output: OutputFormat, code: str
) -> None:
    ask(model, "good", output=CHOICES)
    with pytest.raises(RejectedError) as caught:
        ask(model, "bad", output=output)
    assert caught.value.code == code
    assert set(drain(model)) == {"good"}
    ask(model, "bad", output=CHOICES)
    assert set(drain(model)) == {"bad"}
