"""The last rung of the ladder: the offline library, where a job would fail for good."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.settings import EngineSettings, RetrySettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.library import LibraryAnswer, MatchKind
from tests.unit.engine_desk import Desk

WRITTEN = LibraryAnswer(
    text="Ask the desk.", kind=MatchKind.NEAREST, entry="desk", score=0.8, matched="who knows"
)


def written(submit: m.JobSubmit) -> LibraryAnswer | None:
    return None if submit.prompt == "unheard of" else WRITTEN


@pytest.fixture
def desk() -> Desk:
    desk = Desk(EngineSettings(retry=RetrySettings(max_attempts=1)))
    desk.engine = Engine(desk.settings, "epoch", offline=written)
    desk.worker()
    return desk


def result_of(desk: Desk) -> m.JobResult:
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    return result


def assert_from_the_library(desk: Desk, code: str) -> None:
    result = result_of(desk)
    assert (result.status, result.text) == (m.JobStatus.OK, "Ask the desk.")
    assert (result.answered_by, result.degraded) == (m.AnsweredBy.OFFLINE, True)
    assert result.offline == m.OfflineMatch(kind="nearest", entry="desk", score=0.8)
    assert result.code == code
    assert "'desk', nearest match" in result.message
    assert not desk.job().dead


def test_when_no_board_answers_any_more(desk: Desk) -> None:
    desk.submit(escalate="never")
    desk.failed()
    assert_from_the_library(desk, "onnx")
    assert "no worker answered in 1 attempts" in result_of(desk).message


def test_when_the_board_says_that_no_other_can(desk: Desk) -> None:
    desk.submit()
    desk.failed(retryable=False)
    assert_from_the_library(desk, "onnx")


def test_when_no_provider_answers_and_no_board_could(desk: Desk) -> None:
    desk.submit(prompt="x" * 10_000)
    desk.cloud_failed(1)
    assert_from_the_library(desk, "no_provider")
    assert result_of(desk).reason is m.Reason.TOO_LONG


def test_when_nothing_fits_and_the_prompt_may_not_leave(desk: Desk) -> None:
    desk.submit(prompt="x" * 10_000, privacy="site")
    assert_from_the_library(desk, "too_long")


def test_when_the_deadline_passes_and_not_before(desk: Desk) -> None:
    desk.submit(1)
    desk.submit(2, deadline_ms=500)
    assert not desk.sent(topics.RESULT, m.JobResult)
    desk.wake()
    result = result_of(desk)
    assert (result.id, result.answered_by, result.code) == ("2", m.AnsweredBy.OFFLINE, "deadline")


def test_what_a_board_kept_goes_before_the_library(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    desk.cloud_failed(2)
    result = result_of(desk)
    assert (result.text, result.answered_by, result.offline) == ("blue", m.AnsweredBy.EDGE, None)


def test_an_entry_goes_before_a_boards_word_that_it_should_not_try(desk: Desk) -> None:
    desk.submit()
    desk.escalated(m.Reason.UNSUPPORTED)
    desk.cloud_failed(2)
    assert_from_the_library(desk, "no_provider")


@pytest.mark.parametrize(
    "known", [LibraryAnswer(text="Later.", kind=MatchKind.DEFAULT), None], ids=["default", "none"]
)
def test_that_word_goes_before_the_default_and_before_nothing(known: LibraryAnswer | None) -> None:
    def only(_submit: m.JobSubmit) -> LibraryAnswer | None:
        return known

    desk = Desk()
    desk.engine = Engine(desk.settings, "epoch", offline=only)
    desk.worker()
    desk.submit()
    desk.escalated(m.Reason.UNSUPPORTED)
    desk.cloud_failed(2)
    result = result_of(desk)
    assert (result.text, result.answered_by) == ("blue", m.AnsweredBy.EDGE)


def test_who_gets_no_more_than_the_default_stays_a_dead_letter() -> None:
    desk = Desk()
    default = LibraryAnswer(text="Later.", kind=MatchKind.DEFAULT)
    desk.engine = Engine(desk.settings, "epoch", offline=lambda _: default)
    desk.worker(slots=2)
    for number in (1, 2):  # the second waits for the answer of the first
        desk.submit(number, prompt="Is it warm?")
    desk.failed(retryable=False)
    told = {result.id: result for result in desk.sent(topics.RESULT, m.JobResult)}
    assert {x.text for x in told.values()} == {"Later."}
    assert desk.job("K1").dead
    assert desk.job("K2").dead
    for key in ("K1", "K2"):
        desk.confirmed(key)
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1").ok
    desk.done(attempt=2)
    assert result_of(desk).text == "blue"
    assert not desk.job("K1").dead


def test_what_an_entry_answered_is_not_to_be_retried(desk: Desk) -> None:
    desk.submit()
    desk.failed(retryable=False)
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1").code == "job_answered"


def test_a_job_that_may_be_tried_again_is(desk: Desk) -> None:
    desk.submit()
    desk.escalated(m.Reason.COMPLEX, answer=None)
    desk.cloud_failed(2, retry_after_ms=1_000)
    assert not desk.sent(topics.RESULT, m.JobResult)
    assert desk.job().status is m.JobStatus.ESCALATED


def test_what_the_library_does_not_know_fails_as_without_one(desk: Desk) -> None:
    desk.submit(prompt="unheard of")
    desk.failed(retryable=False)
    result = result_of(desk)
    assert (result.status, result.code, result.text) == (m.JobStatus.FAILED, "onnx", "")
    assert desk.job().dead


@pytest.mark.parametrize("code", ["provider_filtered", "provider_bad_request"])
def test_where_the_job_itself_is_at_fault_its_failure_is_told(desk: Desk, code: str) -> None:
    desk.submit(prompt="x" * 10_000)
    desk.cloud_failed(1, code=code)
    assert (result_of(desk).status, result_of(desk).code) == (m.JobStatus.FAILED, code)


def test_a_wrong_form_is_told_to_its_author(desk: Desk) -> None:
    desk.submit()
    wrong = m.JobFailed(attempt=1, code="bad_output_format", message="no", retryable=False)
    desk.handle(e.FailureReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), failure=wrong))
    assert (result_of(desk).status, result_of(desk).code) == (
        m.JobStatus.FAILED,
        "bad_output_format",
    )


def test_a_cancelled_job_gets_no_answer(desk: Desk) -> None:
    desk.submit()
    desk.cancel()
    assert result_of(desk).status is m.JobStatus.CANCELLED
