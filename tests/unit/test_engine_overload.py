"""What the engine gives up when there is too much to do: the least important first."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.library import LibraryAnswer, MatchKind
from tests.unit.engine_desk import Desk

WRITTEN = LibraryAnswer(text="Ask the desk.", kind=MatchKind.EXACT, entry="desk", score=1.0)
DEFAULT = LibraryAnswer(text="Later.", kind=MatchKind.DEFAULT)


def written(submit: m.JobSubmit) -> LibraryAnswer:
    return WRITTEN if submit.prompt == "who knows?" else DEFAULT


def press(desk: Desk, *, memory_pct: float = 99.0, seconds: int = 31) -> None:
    for _ in range(seconds):
        desk.handle(e.LoadLooked(memory_pct=memory_pct), after_ms=1_000)


def ack_of(desk: Desk) -> m.JobAck:
    (ack,) = desk.sent(topics.ACK, m.JobAck)
    return ack


class TestSteps:
    @pytest.fixture
    def desk(self) -> Desk:
        desk = Desk()
        desk.engine = Engine(desk.settings, "epoch", offline=written)
        return desk

    def test_low_priorities_are_refused_and_told_when_to_come_again(self, desk: Desk) -> None:
        press(desk)
        desk.submit(1, priority=2)
        ack = ack_of(desk)
        assert (ack.status, ack.code) == (m.AckStatus.REJECTED, "busy")
        assert 10_000 <= ack.retry_after_ms <= 15_000
        assert not desk.saved
        desk.submit(2, priority=3)
        assert ack_of(desk).status is m.AckStatus.ACCEPTED
        assert (desk.engine.load().step, desk.engine.load().refused) == (1, 1)

    def test_a_device_that_asked_in_plain_text_is_told_in_words(self, desk: Desk) -> None:
        press(desk)
        desk.submit(1, priority=0, reply=ReplyTo(plain=True))
        (answer,) = desk.sent(topics.ANSWER, m.PlainText)
        assert "busy" in answer.text
        assert "Try again in" in answer.text

    def test_a_job_that_was_accepted_before_is_replayed_and_not_refused(self, desk: Desk) -> None:
        desk.submit(1, priority=0)
        press(desk)
        desk.submit(1, priority=0)
        assert ack_of(desk).status is m.AckStatus.ACCEPTED

    def test_a_step_further_middling_ones_do_with_the_library_if_it_knows(self, desk: Desk) -> None:
        press(desk, seconds=61)
        desk.submit(1, prompt="who knows?")
        assert ack_of(desk).status is m.AckStatus.ACCEPTED
        (result,) = desk.sent(topics.RESULT, m.JobResult)
        assert (result.text, result.answered_by) == ("Ask the desk.", m.AnsweredBy.OFFLINE)
        assert (result.code, result.degraded) == ("overload", True)
        desk.submit(2, prompt="what is it?")
        assert desk.sent(topics.RESULT, m.JobResult) == []
        assert desk.job("K2").status is m.JobStatus.QUEUED
        desk.submit(3, prompt="who knows?", priority=6)
        assert desk.job("K3").status is m.JobStatus.QUEUED

    def test_when_it_is_over_everybody_is_served_again(self, desk: Desk) -> None:
        press(desk)
        press(desk, memory_pct=10.0, seconds=61)
        desk.submit(1, priority=0)
        assert ack_of(desk).status is m.AckStatus.ACCEPTED
        assert desk.engine.summary().load.step == 0


class TestFullQueue:
    @pytest.fixture
    def desk(self) -> Desk:
        desk = Desk(EngineSettings(queue_limit=2))
        desk.submit(1, prompt="one", priority=4)
        desk.submit(2, prompt="two", priority=4)
        return desk

    def test_a_more_important_one_takes_the_place_of_the_last_of_the_least(
        self, desk: Desk
    ) -> None:
        desk.submit(3, prompt="three", priority=5)
        assert ack_of(desk).status is m.AckStatus.ACCEPTED
        (result,) = desk.sent(topics.RESULT, m.JobResult)
        assert (result.id, result.status, result.code) == ("2", m.JobStatus.FAILED, "shed")
        assert desk.job("K2").dead  # an operator can still let it start over
        assert desk.engine.summary().queued == 2
        assert desk.engine.load().shed == 1

    def test_an_equal_one_is_refused(self, desk: Desk) -> None:
        desk.submit(3, prompt="three", priority=4)
        ack = ack_of(desk)
        assert (ack.status, ack.code, ack.message) == (
            m.AckStatus.REJECTED,
            "busy",
            "the queue is full",
        )
        assert desk.sent(topics.RESULT, m.JobResult) == []

    def test_nobody_makes_way_for_what_is_refused_anyway(self, desk: Desk) -> None:
        desk.worker(slots=1)
        desk.submit(3, prompt="three", priority=9)
        desk.submit(4, prompt="four", priority=9, model="huge")
        assert ack_of(desk).code == "unknown_model"
        assert desk.engine.load().shed == 0

    def test_who_makes_way_gets_the_librarys_answer_if_it_has_one(self) -> None:
        desk = Desk(EngineSettings(queue_limit=1))
        desk.engine = Engine(desk.settings, "epoch", offline=written)
        desk.submit(1, prompt="who knows?", priority=1)
        desk.submit(2, prompt="two", priority=9)
        (result,) = desk.sent(topics.RESULT, m.JobResult)
        assert (result.id, result.text, result.code) == ("1", "Ask the desk.", "shed")
        assert not desk.job("K1").dead

    def test_a_long_text_makes_way_as_a_whole(self) -> None:
        desk = Desk(EngineSettings(queue_limit=2))
        words = "\n\n".join("word " * 900 for _ in range(3))
        desk.submit(1, prompt=f"What is it?\n\n{words}", split="paragraphs", priority=1)
        parts = desk.engine.summary().queued - 1
        assert parts >= 3
        desk.submit(2, prompt="two", priority=9)
        (result,) = desk.sent(topics.RESULT, m.JobResult)
        assert (result.id, result.code) == ("1", "shed")
        assert (desk.engine.summary().queued, desk.engine.load().shed) == (1, 1)

    def test_that_one_made_way_ends_no_equal_job(self) -> None:
        desk = Desk(EngineSettings(queue_limit=2))
        desk.engine = Engine(desk.settings, "epoch", offline=written)
        desk.submit(1, prompt="who knows?", priority=1)
        desk.submit(2, prompt="who knows?", priority=1)  # waits for the answer of the first
        desk.submit(3, prompt="three", priority=9)
        assert [result.id for result in desk.sent(topics.RESULT, m.JobResult)] == ["1"]
        assert desk.job("K2").status is m.JobStatus.QUEUED
        desk.presence(status=m.PresenceStatus.OFFLINE)
        desk.worker(slots=2)
        assert desk.job("K2").status is m.JobStatus.ASSIGNED

    def test_what_its_old_board_says_of_a_shed_job_moves_nothing(self) -> None:
        desk = Desk(EngineSettings(queue_limit=1))
        desk.worker()
        desk.submit(1, prompt="one", priority=0)
        desk.presence(status=m.PresenceStatus.OFFLINE)  # K1 waits again, its board may come back
        desk.submit(2, prompt="two", priority=9)
        assert desk.job("K1").result is not None
        desk.done()
        assert desk.sent(topics.RESULT, m.JobResult) == []
        assert desk.receivers(topics.SETTLED) == ["w1"]


def test_what_a_job_waited_is_no_work_of_its_board() -> None:
    desk = Desk()
    desk.submit()
    desk.now_ms += 4_000
    desk.worker()
    desk.now_ms += 1_000
    desk.done()
    desk.handle(e.LoadLooked())
    load = desk.engine.load()
    assert (load.edge_p50_ms, load.edge_work_p50_ms) == (5_000, 1_000)
