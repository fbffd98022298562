"""A follow-up goes back to the board that still knows the conversation, if it has room."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_dispatcher.core.conversations import Conversations, ConversationSettings
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

QUARTER_MS = 900_000
FIRST = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is hall 7 warm?"}]
FOLLOW_UP = [
    *FIRST,
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "And hall 8?"},
]


def two_boards(**settings: Any) -> Desk:
    """A fast board and a slow one that answered the first turn, because the fast one was busy."""
    desk = Desk(EngineSettings(**settings))
    desk.worker("fast", slots=1, tok_s=87.0)
    desk.worker("slow", slots=2, boot="b2", tok_s=9.0)
    desk.submit(8, prompt="something else")
    desk.submit(1, prompt=None, messages=FIRST)
    assert desk.receivers(topics.ASSIGN) == ["slow"]
    desk.done(worker="fast", key="K8")
    desk.done(worker="slow")
    return desk


def board_of_follow_up(desk: Desk, messages: list[dict[str, str]] | None = None) -> list[str]:
    desk.submit(2, prompt=None, messages=messages or FOLLOW_UP)
    return desk.receivers(topics.ASSIGN)


def test_a_follow_up_goes_to_the_board_that_answered_before() -> None:
    assert board_of_follow_up(two_boards()) == ["slow"]


def test_the_turn_after_that_goes_there_too() -> None:
    desk = two_boards()
    board_of_follow_up(desk)
    desk.done(worker="slow", key="K2")
    more = [
        *FOLLOW_UP,
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "And hall 9?"},
    ]
    desk.submit(3, prompt=None, messages=more)
    assert desk.receivers(topics.ASSIGN) == ["slow"]


def test_a_follow_up_of_a_plain_prompt_is_known_too() -> None:
    desk = two_boards()
    desk.submit(8, prompt="something else again")
    desk.submit(3, prompt="Is hall 7 cold?")
    desk.done(worker="fast", key="K8")
    desk.done(worker="slow", key="K3")
    asked = [{"role": "user", "content": "Is hall 7 cold?"}, *FOLLOW_UP[2:]]
    assert board_of_follow_up(desk, asked) == ["slow"]


@pytest.mark.parametrize(
    "messages",
    [
        [*FIRST[:1], {"role": "user", "content": "Is hall 9 warm?"}],
        [{"role": "system", "content": "Be long."}, *FOLLOW_UP[1:]],
        [*FOLLOW_UP[:1], *FOLLOW_UP[2:]],
    ],
)
def test_another_conversation_goes_to_the_best_board(messages: list[dict[str, str]]) -> None:
    assert board_of_follow_up(two_boards(), messages) == ["fast"]


def test_nobody_waits_for_a_board_whose_slots_are_taken() -> None:
    desk = Desk()
    desk.worker("w1", slots=1)
    desk.submit(1, prompt=None, messages=FIRST)
    desk.done()
    desk.submit(8, prompt="something else")
    desk.worker("w2", slots=1, boot="b2")
    assert board_of_follow_up(desk) == ["w2"]


def test_a_place_beyond_the_slots_is_not_room() -> None:
    desk = two_boards()
    info = m.WorkerInfo(
        boot="b2",
        slots=1,
        prefetch=5,
        models=(m.ModelInfo(name="small", version="1", context_tokens=1_000),),
    )
    desk.inform("slow", info)
    for number in (5, 6):
        desk.submit(number)
    assert sorted(desk.receivers(topics.ASSIGN)) == ["slow"]
    desk.done(worker="fast", key="K5")
    assert board_of_follow_up(desk) == ["fast"]


def test_a_board_that_is_gone_is_not_waited_for() -> None:
    desk = two_boards()
    desk.presence("slow", status=m.PresenceStatus.OFFLINE, boot="b2")
    assert board_of_follow_up(desk) == ["fast"]


def test_after_a_quarter_of_an_hour_any_board_will_do() -> None:
    desk = two_boards(worker_silence_ms=7 * 86_400_000)
    desk.now_ms += QUARTER_MS
    assert board_of_follow_up(desk) == ["slow"]
    desk = two_boards(worker_silence_ms=7 * 86_400_000)
    desk.now_ms += QUARTER_MS + 1
    assert board_of_follow_up(desk) == ["fast"]


def test_the_oldest_conversation_is_forgotten_first() -> None:
    known = Conversations(ConversationSettings(most=2))
    jobs = [m.JobSubmit(prompt=f"question {number}") for number in range(3)]
    for number, job in enumerate(jobs):
        known.answered(job, m.WorkerId(f"w{number}"), 0)
    turns = (m.ChatMessage(role=m.ChatRole.ASSISTANT, content="yes"),) * 2
    later = [m.JobSubmit(messages=(*job.conversation, *turns[:1])) for job in jobs]
    assert [known.board_of(job, 1) for job in later] == [None, "w1", "w2"]
    assert len(known) == 2


def test_none_are_remembered_where_none_are_wanted() -> None:
    known = Conversations(ConversationSettings(most=0))
    known.answered(m.JobSubmit(prompt="x"), m.WorkerId("w1"), 0)
    assert len(known) == 0
