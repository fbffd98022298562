"""What a board tells in one message, and what not."""

from __future__ import annotations

import pytest

from edge_worker.core.commands import Send
from edge_worker.service.turn import Turn
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.joint import JOINT_CHARS, JOINT_MAX


def answer(job: str, *, attempt: int = 1, text: str = "21 C", joint: bool = True) -> Send:
    done = m.JobDone(attempt=attempt, answer=m.LocalAnswer(text=text, model="tiny"))
    return Send(t.DONE, ("w1", job), done, joint=joint)


def told(*sends: Send) -> list[Send]:
    turn = Turn()
    for send in sends:
        turn.add_send(send)
    return list(turn.messages())


def jobs(send: Send) -> list[tuple[str, int, str]]:
    """Return (job, attempt, text) of all answers in a message, as the dispatcher reads it."""
    done = codec.decode(t.DONE, codec.encode(send.message))
    assert isinstance(done, m.JobDone)
    first = (send.ids[1], done.attempt, done.answer.text)
    return [first, *((more.job, more.attempt, more.answer.text) for more in done.more)]


def test_answers_of_one_moment_travel_together_on_the_topic_of_the_first() -> None:
    (message,) = told(answer("J1"), answer("J2", attempt=3, text="no"), answer("J3"))
    assert jobs(message) == [("J1", 1, "21 C"), ("J2", 3, "no"), ("J3", 1, "21 C")]


def test_a_single_answer_is_what_it_always_was() -> None:
    alone = answer("J1")
    assert told(alone) == [alone]


def test_what_is_told_alone_stays_alone_and_in_order() -> None:
    started = Send(t.STARTED, ("w1", "J9"), m.JobStarted(attempt=1))
    again = answer("J0", joint=False)
    assert told(started, answer("J1"), again, answer("J2"))[:2] == [started, again]


def test_a_message_holds_so_many_answers_at_most() -> None:
    names = [f"J{number}" for number in range(JOINT_MAX + 1)]
    first, second = told(*map(answer, names))
    assert [name for name, _, _ in jobs(first)] == names[:-1]
    assert [name for name, _, _ in jobs(second)] == names[-1:]


@pytest.mark.parametrize("letter", ["a", "图", "\x00"])
def test_long_answers_never_make_a_message_too_large(letter: str) -> None:
    text = letter * (JOINT_CHARS // 2)
    messages = told(answer("J1", text=text), answer("J2", text=text), answer("J3", text=text))
    assert [len(jobs(message)) for message in messages] == [2, 1]


def test_what_is_said_again_while_nothing_can_be_saved_waits_once_in_its_last_place() -> None:
    turn = Turn()
    held = Send(t.HELD, ("w1",), m.HeldJobs(boot="b1"))
    lost = Send(t.FAILED, ("w1", "J1"), m.JobFailed(attempt=1, code="busy"))
    for _ in range(3):
        for send in (held, lost, answer("J2")):
            turn.add_send(send)
        turn.take_unpromising()
    turn.add_send(held)
    turn.take_unpromising()
    assert turn.sends == [lost, answer("J2"), held]
