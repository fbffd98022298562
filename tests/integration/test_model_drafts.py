"""On the default model: drafted or not, kept or not, the answers are the same, token for token."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest

from edge_worker.adapters.artefact import Artefact, cache_folder, load_artefact, resolve_model
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest, ModelError
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.messages import ChatMessage, ChatRole, Generation

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

NOTICE = (
    "The pump in hall 3 was switched off at 10:42 because the pressure rose above 8.5 bar. "
    "The operator was informed."
)
COPIES = (
    f'Repeat this text word for word: "{NOTICE}"',
    f'Copy this sentence twice: "{NOTICE}"',
    'Repeat exactly: {"device": "lamp-4", "action": "on", "value": 80, "device": "lamp-5"}',
)
PROMPTS = (
    *COPIES,
    # At once: what is kept makes room for later prompts.
    COPIES[0],
    f"Correct the spelling: {NOTICE.replace('pressure', 'presure')}",
    "Extract the numbers: sensor A 21.5, sensor B 22.1, sensor C 19.8, sensor D 20.0",
    "List the devices in: lamp on, fan off, lamp off, heater on, fan on.",
    "Write a short poem about rain.",
    "Count from 1 to 20, with commas.",
)


class Told(NamedTuple):
    """An answer, and how many steps it took."""

    end: Finished
    steps: int


@pytest.fixture(scope="module")
def artefact() -> Artefact:
    try:
        return load_artefact(resolve_model(DEFAULT_MODEL, cache_folder(os.environ)))
    except ModelError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}: {error.hint}")
        pytest.skip(f"{error}: {error.hint}")


def answers(artefact: Artefact, settings: EngineSettings) -> list[Told]:
    engine = OnnxEngine(artefact, settings=settings)
    told: list[Told] = []
    for prompt in PROMPTS:
        tokens = engine.encode([ChatMessage(role=ChatRole.USER, content=prompt)])
        wanted = Generation(max_tokens=32)
        engine.add(GenerationRequest(id="x", prompt_tokens=tokens, generation=wanted))
        steps, end = 0, None
        while not engine.is_idle:
            steps += 1
            for event in engine.step():
                end = event if isinstance(event, Finished) else end
        assert end is not None
        told.append(Told(end, steps))
    engine.close()
    return told


def test_drafts_and_kept_prompts_change_no_token(artefact: Artefact) -> None:
    plain = answers(artefact, EngineSettings(slots=1, draft_tokens=0, prefix_mb=0))
    quick = answers(artefact, EngineSettings(slots=1))
    for one, other in zip(plain, quick, strict=True):
        assert other.end.text == one.end.text
        assert other.end.logprobs == one.end.logprobs
    assert quick[len(COPIES)].end.cached_tokens > 0
    for place in range(len(COPIES)):
        assert quick[place].steps * 1.5 < plain[place].steps
