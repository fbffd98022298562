"""What cannot be ready in time is not begun where the cloud may answer it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_worker.core import events as e
from edge_worker.core.attempt import HeldJob, SpooledJob
from edge_worker.core.generation import Finished
from edge_worker.core.pace import LEAST_SEEN, REMEMBERED, Line, Pace
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.routing import LOCAL, EscalateTo, RoutePolicy, RouteQuery, Timing, decide
from tests.unit.session_lab import INFO, SessionLab, assignment, finished

SPEED = INFO.benchmark
"""The lab's board reads 200 tokens a second and writes 50."""
assert SPEED is not None


def of_length(tokens: int, *, gave_up: bool = False) -> Finished:
    return msgspec.structs.replace(finished("x"), tokens=tokens, gave_up=gave_up)


def paced(*lengths: int) -> Pace:
    pace = Pace()
    for tokens in lengths:
        pace.note(of_length(tokens))
    return pace


def test_what_is_usual_is_what_half_of_the_recent_answers_had_at_most() -> None:
    assert paced(*[40] * (LEAST_SEEN - 1)).usual_tokens == 1
    assert paced(*[2] * 4, *[60] * 4).usual_tokens == 2
    assert paced(*[2] * 4, *[60] * 5).usual_tokens == 60
    assert paced(*[2] * REMEMBERED, *[60] * REMEMBERED).usual_tokens == 60


def test_an_answer_that_was_given_up_has_no_length() -> None:
    pace = paced(*[40] * LEAST_SEEN)
    for _ in range(REMEMBERED):
        pace.note(of_length(2, gave_up=True))
    assert pace.usual_tokens == 40


def test_the_longest_answer_that_was_asked_for_decides_nothing_unless_it_is_short() -> None:
    pace = paced(*[20] * LEAST_SEEN)

    def writing_ms(max_tokens: int) -> float:
        found = pace.reckon(unread_tokens=100, max_tokens=max_tokens, speed=SPEED, left_ms=1_000.0)
        assert found is not None
        assert found.reading_ms == pytest.approx(500)
        return found.writing_ms

    assert writing_ms(4_096) == writing_ms(64) == pytest.approx(400)
    assert writing_ms(5) == pytest.approx(100)


@pytest.mark.parametrize("speed", [(0.0, 200.0), (50.0, 0.0)])
def test_a_speed_of_nothing_is_an_unknown_one(speed: tuple[float, float]) -> None:
    decode_tok_s, prefill_tok_s = speed
    unknown = m.Benchmark(decode_tok_s=decode_tok_s, prefill_tok_s=prefill_tok_s)
    assert Pace().reckon(unread_tokens=9, max_tokens=9, speed=unknown, left_ms=1.0) is None


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_exactly_what_needs_more_than_is_left_leaves(
    waiting_ms: float, reading_ms: float, writing_ms: float, left_ms: float
) -> None:
    timing = Timing(
        waiting_ms=waiting_ms, reading_ms=reading_ms, writing_ms=writing_ms, left_ms=left_ms
    )
    query = RouteQuery(prompt_tokens=20, max_tokens=64, timing=timing)
    route = decide(query, RoutePolicy(context_tokens=1_000))
    if waiting_ms + reading_ms + writing_ms > left_ms:
        assert isinstance(route, EscalateTo)
        assert route.reason is m.Reason.TOO_SLOW
    else:
        assert route == LOCAL


# ------------------------------------------------------------ in a session


def asked(lab: SessionLab, job: str, *, tokens: int, kept: int = 0, **changes: object) -> None:
    """Assign a job whose prompt has so many tokens, `kept` of them known to the engine."""
    lab.assign(job, **changes)
    for name in list(lab.encoding):
        del lab.encoding[name]
        lab.do(e.PromptEncoded(name, tuple(range(tokens)), kept))


def why(lab: SessionLab, job: str) -> str:
    """Return the detail of its escalation; empty if it is generated."""
    told = lab.told(t.ESCALATE, job)
    if not told:
        assert any(name.startswith(f"{job}.") for name in lab.engine)
        return ""
    assert told[0].reason is m.Reason.TOO_SLOW
    return str(told[0].detail)


def test_a_prompt_that_cannot_be_read_in_time_leaves_at_once() -> None:
    lab = SessionLab()
    asked(lab, "J1", tokens=32, deadline_ms=150)  # 160 ms to read, 20 ms to say a word
    assert why(lab, "J1") == "reading the prompt 0.16 s, a usual answer 0.02 s; 0.15 s are left"
    assert lab.engine == {}
    asked(lab, "J2", tokens=32, deadline_ms=180)
    assert why(lab, "J2") == ""


def test_without_a_deadline_any_time_will_do() -> None:
    lab = SessionLab()
    asked(lab, "J1", tokens=36, deadline_ms=None)
    assert why(lab, "J1") == ""


def test_what_the_engine_has_read_before_takes_no_time() -> None:
    lab = SessionLab()
    asked(lab, "J1", tokens=32, kept=31, deadline_ms=150)
    assert why(lab, "J1") == ""


def test_time_that_has_passed_is_gone() -> None:
    lab = SessionLab()
    lab.assign("J1", deadline_ms=200)
    lab.now_ms += 100
    lab.encode_all(32)
    assert why(lab, "J1").endswith("0.10 s are left")


@pytest.mark.parametrize("bound", [{"privacy": m.Privacy.SITE}, {"escalate": m.Escalate.NEVER}])
def test_a_job_that_may_not_leave_is_tried(bound: dict[str, object]) -> None:
    lab = SessionLab()
    asked(lab, "J1", tokens=32, deadline_ms=10, **bound)
    assert why(lab, "J1") == ""


def test_a_board_learns_how_long_its_answers_are() -> None:
    lab = SessionLab()
    for number in range(LEAST_SEEN):
        name = lab.start(f"old-{number}")
        lab.from_engine(msgspec.structs.replace(finished(name), tokens=30))
    asked(lab, "J1", tokens=5, deadline_ms=500)  # 25 ms to read, 600 ms for a usual answer
    assert why(lab, "J1")
    asked(
        lab, "J2", tokens=5, deadline_ms=500, generation=m.Generation(max_tokens=8)
    )  # 25 ms and 160 ms at most
    assert why(lab, "J2") == ""


def test_those_before_it_take_their_time_and_a_higher_priority_passes_who_waits() -> None:
    lab = SessionLab()
    for number in range(LEAST_SEEN):
        name = lab.start(f"old-{number}")
        lab.from_engine(msgspec.structs.replace(finished(name), tokens=25))
    for number in range(4):
        lab.start(f"now-{number}")
    # Two slots, four jobs in them or before it: three must be through, 500 ms each, two at once.
    asked(lab, "J1", tokens=20, deadline_ms=1_300)
    assert why(lab, "J1").startswith("waiting 0.75 s, reading the prompt 0.10 s, a usual")
    asked(lab, "J2", tokens=20, deadline_ms=1_300, priority=9)
    assert why(lab, "J2") == ""


class LineMachine(RuleBasedStateMachine):
    """The line counts as one would who looked at every attempt anew."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line()
        self.waiting: list[HeldJob] = []
        self.at_work: list[HeldJob] = []
        self.gone: list[HeldJob] = []
        self.numbers = 0

    def held(self, priority: int) -> HeldJob:
        self.numbers += 1
        spooled = SpooledJob(assignment=assignment(priority=priority), received_at_ms=0)
        return HeldJob(spooled=spooled, id=str(self.numbers), heard_at_ms=0)

    @rule(priority=st.integers(0, 9))
    def enter(self, priority: int) -> None:
        self.waiting.append(self.held(priority))
        self.line.enter(self.waiting[-1])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        one = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.line.begin(one)
        self.at_work.append(one)

    @precondition(lambda self: self.waiting or self.at_work or self.gone)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """An attempt is finished and later dropped: it leaves twice."""
        here = data.draw(st.sampled_from([x for x in (self.waiting, self.at_work, self.gone) if x]))
        one = here.pop(data.draw(st.integers(0, len(here) - 1)))
        self.line.leave(one)
        self.gone.append(one)

    @invariant()
    def counts_all(self) -> None:
        for priority in range(10):
            waiting = [x for x in self.waiting if x.spooled.assignment.priority >= priority]
            ahead = len(self.at_work) + len(waiting)
            assert self.line.ahead_of(self.held(priority)) == ahead


TestLine = LineMachine.TestCase


def test_a_board_that_was_never_measured_tries() -> None:
    lab = SessionLab()
    lab.session._teller.info = msgspec.structs.replace(INFO, benchmark=None)
    asked(lab, "J1", tokens=32, deadline_ms=10)
    assert why(lab, "J1") == ""


def test_a_board_that_found_out_its_speed_reckons_with_it() -> None:
    lab = SessionLab()
    slow = m.Benchmark(decode_tok_s=5.0, prefill_tok_s=20.0)
    lab.do(e.SpeedMeasured(speed=slow, is_steady=True))
    asked(lab, "J1", tokens=32, deadline_ms=1_500)
    assert why(lab, "J1").startswith("reading the prompt 1.60 s")
