"""Whoever else is there, whatever is kept or drafted: every request gets the tokens it gets alone.

The engine and its operators are the real ones, on the tiny model: what is tested is also that its
arithmetic does not depend on the company.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import EngineEvent, Finished, GenerationRequest, Grew
from fleet_protocol.messages import Generation, OutputFormat
from tests.contract import calculating_model, tiny_model

CHUNK = 4
SYSTEM = (1, 70, 71, 72, 73, 74, 75, 76, 77, 78)
PLAIN = EngineSettings(
    slots=1, intra_op_threads=1, prefill_chunk_tokens=CHUNK, prefix_mb=0, draft_tokens=0
)
BUSY = EngineSettings(
    slots=3, intra_op_threads=1, prefill_chunk_tokens=CHUNK, prefix_mb=1, draft_tokens=5
)


CHOICES = OutputFormat(choices=("the hell", "the heating", "in"))


class Ask(NamedTuple):
    """A request to come."""

    prompt: tuple[int, ...]
    generation: Generation
    priority: int


class Alone:
    """Answers of an engine without drafts and kept prompts that does one thing at a time."""

    def __init__(self, artefact: Artefact) -> None:
        self._engine = OnnxEngine(artefact, settings=PLAIN)
        self._known: dict[Ask, Finished] = {}

    def __call__(self, ask: Ask) -> Finished:
        if ask not in self._known:
            self._engine.add(request("alone", ask))
            (end,) = (event for event in drain(self._engine) if isinstance(event, Finished))
            self._known[ask] = end
        return self._known[ask]


@pytest.fixture(scope="module", params=["plain", "calculating"])
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A model that says anything, and one that writes calculations all the time."""
    built = calculating_model if request.param == "calculating" else tiny_model
    return built.build_artefact(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def alone(artefact: Artefact) -> Alone:
    return Alone(artefact)


@pytest.fixture(scope="module")
def busy(artefact: Artefact) -> Iterator[OnnxEngine]:
    """One engine for all examples: what one left behind is there for the next."""
    engine = OnnxEngine(artefact, settings=BUSY)
    yield engine
    engine.close()


def request(name: str, ask: Ask) -> GenerationRequest:
    return GenerationRequest(
        id=name, prompt_tokens=ask.prompt, generation=ask.generation, priority=ask.priority
    )


def drain(engine: OnnxEngine) -> Iterator[EngineEvent]:
    while not engine.is_idle:
        yield from engine.step()


tails = st.lists(st.integers(40, 90), min_size=1, max_size=14).map(tuple)
asks = st.builds(
    Ask,
    prompt=st.one_of(tails, tails.map(lambda tail: (*SYSTEM, *tail))),
    generation=st.builds(
        Generation,
        max_tokens=st.integers(1, 24),
        temperature=st.sampled_from([0.0, 0.0, 0.8]),
        top_p=st.sampled_from([1.0, 0.9]),
        seed=st.integers(0, 3),
        output=st.sampled_from([None, None, CHOICES]),
    ),
    priority=st.integers(0, 9),
)
steps = st.lists(
    st.one_of(asks, st.integers(0, 11).map(lambda place: ("cancel", place)), st.integers(1, 6)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_any_interleaving_gives_every_request_what_it_gets_alone(
    steps: list[Ask | tuple[str, int] | int], busy: OnnxEngine, alone: Alone
) -> None:
    asked: dict[str, Ask] = {}
    events: list[EngineEvent] = []
    cancelled: set[str] = set()
    for step in steps:
        if isinstance(step, Ask):
            name = f"r{len(asked)}"
            asked[name] = step
            busy.add(request(name, step))
        elif isinstance(step, int):
            for _ in range(step):
                events += busy.step()
        elif step[1] < len(asked):
            name = f"r{step[1]}"
            over = {event.id for event in events if isinstance(event, Finished)}
            cancelled |= {name} - over
            busy.cancel(name)
    events += drain(busy)
    ends = {event.id: event for event in events if isinstance(event, Finished)}
    assert set(ends) == set(asked) - cancelled
    for name, end in ends.items():
        expected = alone(asked[name])
        assert (end.text, end.finish, end.tokens, end.logprobs) == (
            expected.text,
            expected.finish,
            expected.tokens,
            expected.logprobs,
        )
        shown = "".join(e.text for e in events if isinstance(e, Grew) and e.id == name)
        assert shown == end.text


@pytest.mark.parametrize("artefact", ["plain"], indirect=True)
def test_the_tokens_here_are_really_kept_and_drafted(busy: OnnxEngine) -> None:
    """Or the test above would test nothing."""
    ask = Ask((*SYSTEM, 57, 58, 57, 58, 57), Generation(max_tokens=40), 5)
    first = run_alone(busy, ask)
    assert run_alone(busy, ask).cached_tokens == 12 >= first.cached_tokens
    assert busy._graph is not None
    assert busy._graph.draft_tokens == 5
    busy.add(request("counted", ask))
    runs = 0
    while not busy.is_idle:
        busy.step()
        runs += 1
    assert runs < 30


def run_alone(engine: OnnxEngine, ask: Ask) -> Finished:
    engine.add(request("x", ask))
    (end,) = (event for event in drain(engine) if isinstance(event, Finished))
    return end


@pytest.mark.parametrize("artefact", ["calculating"], indirect=True)
def test_the_calculations_here_are_really_computed(busy: OnnxEngine, alone: Alone) -> None:
    """Or the test above would test nothing of them."""
    asked = [Ask((*SYSTEM, last), Generation(max_tokens=24), 5) for last in range(50, 58)]
    ends = [alone(ask) for ask in asked]
    hidden = [end for end in ends if end.tokens > len(end.logprobs)]
    assert len(hidden) > len(asked) / 2
    assert [run_alone(busy, ask).text for ask in asked] == [end.text for end in ends]
