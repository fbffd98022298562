"""What every inference engine keeps, the shipped fake as well as the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import EngineEvent, Finished, GenerationRequest, Grew, InferenceEngine
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage, ChatRole, FinishReason, Generation
from tests.contract import tiny_model

SLOTS = 3
STEPS_MAX = 2_000
MakeEngine: TypeAlias = Callable[[], InferenceEngine]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return tiny_model.build_artefact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["echo", "onnx"])
def make_engine(request: pytest.FixtureRequest, artefact: Artefact) -> Iterator[MakeEngine]:
    engines: list[InferenceEngine] = []

    def make() -> InferenceEngine:
        engine: InferenceEngine
        if request.param == "echo":
            engine = EchoEngine(
                slots=SLOTS, context_tokens=tiny_model.CONTEXT_TOKENS, tokens_per_step=1
            )
        else:
            limits = EngineSettings(slots=SLOTS, intra_op_threads=1, prefill_chunk_tokens=8)
            engine = OnnxEngine(artefact, settings=limits)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine) -> InferenceEngine:
    return make_engine()


TEXT = "An é in the middle, and enough words for twenty tokens of text. 0123456789 0123456789"


def ask(
    engine: InferenceEngine,
    name: str,
    text: str = TEXT,
    *,
    priority: int = 5,
    wanted: Generation | None = None,
) -> GenerationRequest:
    turn = ChatMessage(role=ChatRole.USER, content=text)
    request = GenerationRequest(
        id=name,
        prompt_tokens=engine.encode([turn]),
        generation=wanted or Generation(max_tokens=12),
        priority=priority,
    )
    engine.add(request)
    return request


def drain(engine: InferenceEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    for _ in range(STEPS_MAX):
        if engine.is_idle:
            return events
        events += engine.step()
    raise AssertionError(f"{engine!r} never became idle")


def step_until(engine: InferenceEngine, name: str, *, tokens: int) -> list[EngineEvent]:
    """Step until this request has shown so many tokens."""
    events: list[EngineEvent] = []
    for _ in range(STEPS_MAX):
        new = engine.step()
        events += new
        if any(isinstance(e, Grew) and e.id == name and e.tokens >= tokens for e in new):
            return events
    raise AssertionError(f"{name} never reached {tokens} tokens")


def finished(events: list[EngineEvent]) -> dict[str, Finished]:
    return {event.id: event for event in events if isinstance(event, Finished)}


def answer_alone(engine: InferenceEngine, text: str, wanted: Generation) -> Finished:
    ask(engine, "alone", text, wanted=wanted)
    return finished(drain(engine))["alone"]


def test_the_shown_pieces_are_the_answer(engine: InferenceEngine) -> None:
    ask(engine, "a")
    events = drain(engine)
    pieces = [event.text for event in events if isinstance(event, Grew)]
    assert len(pieces) > 1
    assert "".join(pieces) == finished(events)["a"].text
    assert all(pieces)
    assert "\ufffd" not in "".join(pieces)


def test_an_answer_that_nobody_watches_is_the_same(engine: InferenceEngine) -> None:
    watched = ask(engine, "a")
    text = finished(drain(engine))["a"].text
    engine.add(msgspec.structs.replace(watched, stream=False))
    events = drain(engine)
    assert finished(events)["a"].text == text
    assert text.startswith("".join(event.text for event in events if isinstance(event, Grew)))


def test_the_end_is_told_once_and_last(engine: InferenceEngine) -> None:
    ask(engine, "a")
    events = drain(engine)
    assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]


def test_every_token_has_its_log_probability(engine: InferenceEngine) -> None:
    ask(engine, "a")
    end = finished(drain(engine))["a"]
    assert len(end.logprobs) == end.tokens > 0
    assert all(logprob <= 0.0 for logprob in end.logprobs)


def test_the_answer_has_at_most_max_tokens(engine: InferenceEngine) -> None:
    end = answer_alone(engine, TEXT, Generation(max_tokens=5))
    assert (end.tokens, end.finish) == (5, FinishReason.LENGTH)


def test_the_prompt_is_counted_as_encoded(engine: InferenceEngine) -> None:
    request = ask(engine, "a")
    assert finished(drain(engine))["a"].prompt_tokens == len(request.prompt_tokens)


def test_encoding_is_repeatable_and_not_empty(engine: InferenceEngine) -> None:
    turns = [
        ChatMessage(role=ChatRole.SYSTEM, content="Be brief."),
        ChatMessage(role=ChatRole.USER, content="née 🙂"),
    ]
    assert engine.encode(turns) == engine.encode(turns) != ()


def test_of_a_prompt_it_has_not_read_nothing_is_kept_and_never_all_of_one_it_has(
    engine: InferenceEngine,
) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content="is the valve open? " * 5)])
    assert engine.kept_tokens(prompt) == 0
    for name in ("first", "again"):
        kept = engine.kept_tokens(prompt)
        engine.add(
            GenerationRequest(id=name, prompt_tokens=prompt, generation=Generation(max_tokens=1))
        )
        (end,) = (event for event in drain(engine) if isinstance(event, Finished))
        assert end.cached_tokens == kept
    assert engine.kept_tokens(prompt) < len(prompt)


def test_an_idle_engine_does_nothing(engine: InferenceEngine) -> None:
    assert engine.is_idle
    assert engine.step() == []
    ask(engine, "a")
    assert not engine.is_idle
    drain(engine)
    assert engine.is_idle
    assert engine.step() == []


def test_a_request_that_joins_others_answers_as_alone(make_engine: MakeEngine) -> None:
    alone = answer_alone(make_engine(), "the second one", Generation(max_tokens=9))
    engine = make_engine()
    ask(engine, "first")
    step_until(engine, "first", tokens=2)
    ask(engine, "second", "the second one", wanted=Generation(max_tokens=9))
    end = finished(drain(engine))["second"]
    assert (end.text, end.tokens, end.finish) == (alone.text, alone.tokens, alone.finish)


def test_those_who_stay_do_not_notice_who_leaves(make_engine: MakeEngine) -> None:
    wanted = Generation(max_tokens=9)
    alone = answer_alone(make_engine(), "who stays here until its own end", wanted)
    engine = make_engine()
    ask(engine, "leaves")
    ask(engine, "ends", wanted=Generation(max_tokens=2))
    ask(engine, "stays", "who stays here until its own end", wanted=wanted)
    step_until(engine, "stays", tokens=3)
    engine.cancel("leaves")
    end = finished(drain(engine))["stays"]
    assert (end.text, end.tokens) == (alone.text, alone.tokens)


def test_nothing_follows_a_cancelled_request(engine: InferenceEngine) -> None:
    ask(engine, "a")
    ask(engine, "b")
    step_until(engine, "a", tokens=2)
    engine.cancel("a")
    assert {event.id for event in drain(engine)} == {"b"}


def test_nothing_is_left_of_a_request_cancelled_before_its_first_token(
    make_engine: MakeEngine,
) -> None:
    wanted = Generation(max_tokens=9)
    alone = answer_alone(make_engine(), "who comes next", wanted)
    engine = make_engine()
    ask(engine, "reading")
    engine.step()
    engine.cancel("reading")
    ask(engine, "next", "who comes next", wanted=wanted)
    events = drain(engine)
    assert {event.id for event in events} == {"next"}
    assert finished(events)["next"].text == alone.text


def test_a_cancelled_request_frees_its_slot_at_once(engine: InferenceEngine) -> None:
    for number in range(SLOTS):
        ask(engine, f"busy-{number}", wanted=Generation(max_tokens=30))
    ask(engine, "next", "a short one")
    step_until(engine, f"busy-{SLOTS - 1}", tokens=2)
    engine.cancel("busy-0")
    events = step_until(engine, "next", tokens=1)
    assert not finished(events)


def test_a_cancelled_request_may_be_waiting_or_unknown(engine: InferenceEngine) -> None:
    for number in range(SLOTS):
        ask(engine, f"busy-{number}")
    ask(engine, "waits")
    engine.step()
    engine.cancel("waits")
    engine.cancel("nobody")
    assert "waits" not in {event.id for event in drain(engine)}


def test_the_last_request_cancelled_leaves_an_idle_engine(engine: InferenceEngine) -> None:
    ask(engine, "a")
    engine.step()
    engine.cancel("a")
    assert engine.is_idle
    assert engine.step() == []


def test_no_more_than_slots_generate_at_once(engine: InferenceEngine) -> None:
    assert engine.slots == SLOTS
    for number in range(SLOTS + 2):
        ask(engine, str(number))
    begun: set[str] = set()
    over: set[str] = set()
    while not engine.is_idle:
        for event in engine.step():
            begun.add(event.id)
            over |= {event.id} if isinstance(event, Finished) else set()
            assert len(begun - over) <= SLOTS


def test_who_waits_is_admitted_by_priority_then_arrival(engine: InferenceEngine) -> None:
    for name, priority in (("low", 1), ("first", 5), ("second", 5), ("high", 9)):
        ask(engine, name, priority=priority)
    order = list(dict.fromkeys(event.id for event in drain(engine)))
    assert order == ["high", "first", "second", "low"]


def test_what_cannot_fit_is_refused(engine: InferenceEngine) -> None:
    prompt = engine.encode([ChatMessage(role=ChatRole.USER, content=TEXT)])
    room = engine.model.context_tokens - len(prompt)
    fits = GenerationRequest(
        id="fits", prompt_tokens=prompt, generation=Generation(max_tokens=room)
    )
    beyond = GenerationRequest(
        id="beyond", prompt_tokens=prompt, generation=Generation(max_tokens=room + 1)
    )
    with pytest.raises(RejectedError) as refusal:
        engine.add(beyond)
    assert refusal.value.code == "too_long"
    assert engine.is_idle
    engine.add(fits)
    assert finished(drain(engine))["fits"].tokens <= room


def test_an_empty_prompt_is_refused(engine: InferenceEngine) -> None:
    with pytest.raises(RejectedError) as refusal:
        engine.add(GenerationRequest(id="a", prompt_tokens=(), generation=Generation()))
    assert refusal.value.code == "empty_prompt"


def test_an_id_in_use_is_refused_and_free_again_afterwards(engine: InferenceEngine) -> None:
    ask(engine, "a")
    with pytest.raises(RejectedError) as refusal:
        ask(engine, "a")
    assert refusal.value.code == "duplicate_request"
    drain(engine)
    ask(engine, "a")
    engine.cancel("a")
    ask(engine, "a")
    assert "a" in finished(drain(engine))


def test_a_stop_text_ends_the_answer_and_is_never_shown(make_engine: MakeEngine) -> None:
    whole = answer_alone(make_engine(), TEXT, Generation(max_tokens=12)).text
    stop = whole[4:7]
    engine = make_engine()
    ask(engine, "a", wanted=Generation(max_tokens=12, stop=("never said", stop)))
    events = drain(engine)
    end = finished(events)["a"]
    assert (end.text, end.finish) == (whole[: whole.index(stop)], FinishReason.STOP)
    assert "".join(event.text for event in events if isinstance(event, Grew)) == end.text


def test_the_same_seed_gives_the_same_answer_in_any_company(make_engine: MakeEngine) -> None:
    wanted = Generation(max_tokens=12, temperature=1.0, top_p=0.9, seed=42)
    alone = answer_alone(make_engine(), TEXT, wanted)
    engine = make_engine()
    ask(engine, "other", "somebody else", wanted=Generation(max_tokens=7, temperature=1.5, seed=1))
    ask(engine, "a", wanted=wanted)
    end = finished(drain(engine))["a"]
    assert (end.text, end.logprobs) == (alone.text, alone.logprobs)


def test_a_closed_engine_is_idle(engine: InferenceEngine) -> None:
    ask(engine, "a")
    engine.step()
    engine.close()
    assert engine.is_idle
    assert engine.step() == []


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 3), st.integers(1, 14)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    min_size=4,
    max_size=40,
)
PROMPTS = ("the thing", "hello", "a longer one that takes several chunks to read é", "x")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=MOVES)
def test_any_company_gives_the_answers_of_one_alone(
    make_engine: MakeEngine, moves: list[tuple[str, int, int]]
) -> None:
    """Whatever joins, leaves and ends around it, an answer is the same token by token."""
    engine, reference = make_engine(), make_engine()
    asked: list[tuple[str, int, int]] = []
    cancelled: set[str] = set()
    events: list[EngineEvent] = []
    for kind, number, tokens in moves:
        if kind == "ask":
            asked.append((str(len(asked)), number, tokens))
            ask(engine, asked[-1][0], PROMPTS[number], wanted=Generation(max_tokens=tokens))
        elif kind == "step":
            for _ in range(number):
                events += engine.step()
        elif asked:
            name = asked[-1 - number % len(asked)][0]
            if name not in finished(events):
                cancelled.add(name)
            engine.cancel(name)
            events.append(Grew(f"cancelled-{name}", "", 0))
    ends = finished(events := events + drain(engine))
    assert ends.keys() == {name for name, _, _ in asked} - cancelled
    for name in cancelled:
        marker = events.index(Grew(f"cancelled-{name}", "", 0))
        assert all(event.id != name for event in events[marker:])
    for name, number, tokens in asked:
        if name not in cancelled:
            alone = answer_alone(reference, PROMPTS[number], Generation(max_tokens=tokens))
            assert (ends[name].text, ends[name].logprobs) == (alone.text, alone.logprobs)
