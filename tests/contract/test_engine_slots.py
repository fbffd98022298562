"""How every engine takes fewer requests at once when it is told to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest, InferenceEngine
from fleet_protocol.messages import ChatMessage, ChatRole, Generation
from tests.contract import tiny_model

SLOTS = 3
TEXT = "enough words for an answer of some tokens"


@pytest.fixture(params=["echo", "onnx"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceEngine]:
    made: InferenceEngine
    if request.param == "echo":
        made = EchoEngine(slots=SLOTS, context_tokens=128, tokens_per_step=1)
    else:
        artefact = tiny_model.build_artefact(tmp_path_factory.mktemp("tiny"))
        made = OnnxEngine(artefact, settings=EngineSettings(slots=SLOTS, intra_op_threads=1))
    yield made
    made.close()


def ask(engine: InferenceEngine, *names: str) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content=TEXT)])
    for name in names:
        wanted = Generation(max_tokens=8)
        engine.add(GenerationRequest(id=name, prompt_tokens=prompt, generation=wanted))


def most_at_once(engine: InferenceEngine) -> tuple[int, set[str]]:
    """Run until it is idle; return how many worked at once, and who came to an end."""
    begun: set[str] = set()
    over: set[str] = set()
    most = 0
    while not engine.is_idle:
        for event in engine.step():
            begun.add(event.id)
            most = max(most, len(begun - over))
            over |= {event.id} if isinstance(event, Finished) else set()
    return most, over


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (99, SLOTS)])
def test_no_more_begin_than_the_limit_allows(
    engine: InferenceEngine, *, limit: int, most: int
) -> None:
    engine.limit_slots(limit)
    ask(engine, "a", "b", "c", "d")
    assert most_at_once(engine) == (most, {"a", "b", "c", "d"})


def test_what_runs_is_not_dropped_by_a_lower_limit(engine: InferenceEngine) -> None:
    ask(engine, "a", "b")
    begun: set[str] = set()
    while begun != {"a", "b"}:
        begun |= {event.id for event in engine.step()}
    ask(engine, "waits")
    engine.limit_slots(0)
    assert not engine.is_idle
    assert most_at_once(engine)[1] <= {"a", "b"}
    engine.limit_slots(1)
    assert "waits" in most_at_once(engine)[1]


def test_without_a_slot_an_engine_is_idle_and_keeps_who_waits(engine: InferenceEngine) -> None:
    engine.limit_slots(0)
    ask(engine, "a")
    assert engine.is_idle
    assert engine.step() == []
    engine.limit_slots(1)
    assert not engine.is_idle
    assert most_at_once(engine)[1] == {"a"}
