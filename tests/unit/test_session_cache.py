"""A worker's own answer cache: what it said before it says again, without its engine."""

from __future__ import annotations

import msgspec
import pytest

from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core.health import HostReading
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.session_lab import UNSURE, SessionLab, assignment, finished

TTL_MS = 60_000


@pytest.fixture
def lab() -> SessionLab:
    """A worker that has answered J1."""
    lab = SessionLab()
    lab.run("J1", cache_ttl_ms=TTL_MS)
    return lab


def done(lab: SessionLab, job: str = "J2") -> list[m.JobDone]:
    return lab.told(t.DONE, job)


def is_asked_of_the_engine(lab: SessionLab) -> bool:
    return bool(lab.encoding)


def test_an_equal_question_is_answered_at_once_without_the_engine(lab: SessionLab) -> None:
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    assert not is_asked_of_the_engine(lab)
    (said,) = done(lab)
    first = lab.told(t.DONE, "J1")[0].answer
    assert said.answer == msgspec.structs.replace(first, cached=True)
    assert not first.cached


def test_an_answer_from_the_cache_is_on_the_disk_before_it_is_told(lab: SessionLab) -> None:
    commands = lab.do(e.AssignmentReceived(assignment("J2", cache_ttl_ms=TTL_MS)))
    kept = [index for index, x in enumerate(commands) if isinstance(x, c.KeepJob)]
    sent = [index for index, x in enumerate(commands) if isinstance(x, c.Send)]
    assert max(kept) < min(sent)
    assert lab.disk["J2", 1].outcome is not None


def test_a_board_without_a_link_answers_from_its_cache_and_tells_it_later(lab: SessionLab) -> None:
    lab.do(e.LinkLost())
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    assert lab.disk["J2", 1].outcome is not None
    assert done(lab) == []
    lab.link()
    assert done(lab)[0].answer.cached


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_ttl_ms": 0},
        {"cache_ttl_ms": 999},
        {"tenant": "south"},
        {"generation": m.Generation(max_tokens=9)},
        {"messages": (m.ChatMessage(role=m.ChatRole.USER, content="how cold is it?"),)},
    ],
)
def test_an_answer_serves_only_who_wants_just_that(
    lab: SessionLab, changes: dict[str, object]
) -> None:
    lab.now_ms += 1_000
    lab.assign("J2", **({"cache_ttl_ms": TTL_MS} | changes))
    assert is_asked_of_the_engine(lab)


def test_an_answer_is_kept_for_as_long_as_its_job_said(lab: SessionLab) -> None:
    lab.now_ms += TTL_MS
    lab.assign("J2", cache_ttl_ms=10 * TTL_MS)
    assert is_asked_of_the_engine(lab)


def test_answers_survive_a_power_cut(lab: SessionLab) -> None:
    lab.boot()
    lab.link()
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    assert done(lab)[0].answer.cached


def test_an_answer_from_a_time_to_come_is_not_given(lab: SessionLab) -> None:
    lab.now_ms -= 500_000  # the clock was set back over a boot
    lab.boot()
    lab.link()
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    assert is_asked_of_the_engine(lab)


def test_a_job_that_is_not_to_be_kept_leaves_nothing() -> None:
    lab = SessionLab()
    lab.run("J1")
    assert lab.answers == {}


def test_a_cut_answer_is_not_kept() -> None:
    lab = SessionLab()
    whole = finished(lab.start("J1", cache_ttl_ms=TTL_MS))
    lab.from_engine(msgspec.structs.replace(whole, finish=m.FinishReason.LENGTH))
    assert lab.told(t.DONE, "J1")
    assert lab.answers == {}


def test_an_answer_that_was_escalated_is_not_kept() -> None:
    lab = SessionLab()
    lab.from_engine(finished(lab.start("J1", cache_ttl_ms=TTL_MS), logprobs=UNSURE))
    assert lab.told(t.ESCALATE, "J1")
    assert lab.answers == {}


def test_a_doubtful_answer_is_escalated_from_the_cache_as_from_the_engine() -> None:
    lab = SessionLab()
    name = lab.start("J1", cache_ttl_ms=TTL_MS, escalate=m.Escalate.NEVER)
    lab.from_engine(finished(name, logprobs=UNSURE))
    assert lab.told(t.DONE, "J1")
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    (said,) = lab.told(t.ESCALATE, "J2")
    assert said.reason is m.Reason.LOW_CONFIDENCE
    assert said.answer is not None
    assert said.answer.text == "21 C"
    lab.assign("J3", cache_ttl_ms=TTL_MS, privacy=m.Privacy.SITE)
    assert done(lab, "J3")[0].answer.cached


def test_a_job_for_another_model_gets_no_answer_of_this_one(lab: SessionLab) -> None:
    lab.assign("J2", cache_ttl_ms=TTL_MS, model="other")
    assert done(lab) == []
    assert lab.told(t.ESCALATE, "J2")[0].reason is m.Reason.UNSUPPORTED


def test_a_board_at_its_critical_temperature_still_gives_what_it_knows(lab: SessionLab) -> None:
    hot = HostReading(cpu_pct=99.0, mem_pct=20.0, temp_c=95.0, throttled=True)
    lab.do(e.HostRead(hot))
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    assert done(lab)[0].answer.cached


def test_the_same_attempt_again_is_told_again_not_answered_anew(lab: SessionLab) -> None:
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    first, again = done(lab)
    assert first == again


def test_a_board_that_is_told_to_forgets_its_answers_for_good(lab: SessionLab) -> None:
    forget = m.WorkerCommand(id="c1", op=m.WorkerOp.FORGET_ANSWERS)
    commands = lab.do(e.CommandReceived(forget))
    assert commands == [c.ForgetAnswers()]
    lab.assign("J2", cache_ttl_ms=TTL_MS)
    assert is_asked_of_the_engine(lab)
    lab.boot()
    assert lab.answers == {}


@pytest.mark.parametrize("jump_ms", [-900_000, 3_600_000])
def test_what_was_kept_by_another_clock_is_not_given_after_a_start(
    lab: SessionLab, jump_ms: int
) -> None:
    """Of an answer of the future, or of an hour ago, nobody knows how old it is."""
    lab.now_ms += jump_ms
    lab.boot()
    lab.link()
    lab.run("J2", cache_ttl_ms=TTL_MS)
    assert [said.answer.cached for said in done(lab)] == [False]
    lab.assign("J3", cache_ttl_ms=TTL_MS)
    assert done(lab, "J3")[0].answer.cached, "what is kept by this clock is given"
