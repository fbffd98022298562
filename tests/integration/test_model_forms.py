"""The default model's answers in a form: always valid, whatever it knows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from edge_worker.adapters.artefact import cache_folder, load_artefact, resolve_model
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest, ModelError
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, OutputFormat

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

COMMAND = OutputFormat(
    json_schema={
        "type": "object",
        "properties": {
            "device": {"type": "string", "maxLength": 30},
            "action": {"enum": ["turn_on", "turn_off", "set"]},
            "value": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
        },
        "required": ["device", "action", "value"],
        "additionalProperties": False,
    }
)
PROMPTS = (
    "Command as JSON: set the kitchen light to 40%.",
    "Schalte den Ventilator aus.",
    "打开客厅的灯",
    "Write a poem about rain.",
)


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    try:
        artefact = load_artefact(resolve_model(DEFAULT_MODEL, cache_folder(os.environ)))
    except ModelError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}: {error.hint}")
        pytest.skip(f"{error}: {error.hint}")
    engine = OnnxEngine(artefact, settings=EngineSettings(slots=4, max_tokens=256))
    yield engine
    engine.close()


def answers(
    engine: OnnxEngine, output: OutputFormat, *, temperature: float = 0.0
) -> dict[str, Finished]:
    for number, prompt in enumerate(PROMPTS):
        tokens = engine.encode([ChatMessage(role=ChatRole.USER, content=prompt)])
        wanted = Generation(max_tokens=80, output=output, temperature=temperature, seed=number)
        engine.add(GenerationRequest(id=prompt, prompt_tokens=tokens, generation=wanted))
    ends: dict[str, Finished] = {}
    while not engine.is_idle:
        ends.update((event.id, event) for event in engine.step() if isinstance(event, Finished))
    return ends


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_answer_under_a_bounded_schema_is_valid(
    engine: OnnxEngine, temperature: float
) -> None:
    ends = answers(engine, COMMAND, temperature=temperature)
    assert set(ends) == set(PROMPTS)
    for end in ends.values():
        value = json.loads(end.text)
        assert end.fits_output
        assert list(value) == ["device", "action", "value"]
        assert len(value["device"]) <= 30
        assert value["action"] in {"turn_on", "turn_off", "set"}
        assert value["value"] is None or 0 <= value["value"] <= 100


def test_every_answer_is_one_of_the_choices(engine: OnnxEngine) -> None:
    choices = OutputFormat(choices=("light", "fan", "none of them", "没有"))
    assert {end.text for end in answers(engine, choices).values()} <= set(choices.choices or ())
