"""The engine and the cloud: escalations, provider calls, and the ladder down from them."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import BudgetSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.errors import RejectedError
from tests.unit.engine_desk import Desk


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker()
    return desk


def calls(desk: Desk) -> list[c.CompletionRequest]:
    return [x.request for x in desk.commands if isinstance(x, c.StartCompletion)]


def result_of(desk: Desk) -> m.JobResult:
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    return result


def test_an_escalation_frees_the_slot_and_calls_the_provider_under_a_new_attempt(
    desk: Desk,
) -> None:
    desk.submit(deadline_ms=20_000)
    desk.now_ms += 5_000
    desk.escalated()
    (call,) = calls(desk)
    assert (call.attempt, call.timeout_ms) == (2, 15_000)
    assert desk.receivers(topics.SETTLED) == ["w1"]
    assert desk.engine.workers()[0].inflight == 0
    assert desk.job().kept is not None


def test_the_cloud_answers_with_its_cost_and_the_reason(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    desk.cloud_finished(2)
    result = result_of(desk)
    assert (result.text, result.answered_by) == ("azure", m.AnsweredBy.CLOUD)
    assert (result.reason, result.worker) == (m.Reason.LOW_CONFIDENCE, "w1")
    assert (result.model, result.cost_usd, result.degraded) == ("deepseek", 0.001, False)


def test_an_escalated_job_remembers_the_board_and_each_call_that_failed(desk: Desk) -> None:
    desk.submit()
    desk.now_ms += 700
    desk.escalated(answer=None)
    desk.now_ms += 900
    desk.cloud_failed(2, code="provider_unavailable")
    board, call = desk.job().past
    assert (board.worker, board.code) == ("w1", "low_confidence")
    assert board.ended_at_ms - (board.began_at_ms or 0) == 700
    assert (call.attempt, call.worker, call.began_at_ms) == (2, None, None)
    assert call.code == "provider_unavailable"
    assert call.ended_at_ms - board.ended_at_ms == 900


def test_the_form_of_the_answer_reaches_the_board_and_the_cloud(desk: Desk) -> None:
    output = m.OutputFormat(choices=("yes", "no"))
    desk.submit(output=output)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert assignment.generation.output == output
    desk.escalated(answer=None)
    (call,) = calls(desk)
    assert call.generation.output == output


def test_a_cloud_answer_of_another_form_is_degraded_and_says_why(desk: Desk) -> None:
    desk.submit(output=m.OutputFormat(choices=("yes", "no")))
    desk.escalated(answer=None)
    desk.cloud_finished(2, misfit="the answer is none of the choices")
    result = result_of(desk)
    assert (result.status, result.text, result.degraded) == (m.JobStatus.OK, "azure", True)
    assert (result.code, result.message) == (
        "output_mismatch",
        "the answer is none of the choices",
    )


def test_half_a_form_without_a_cloud_ends_as_a_failure_that_names_it(desk: Desk) -> None:
    desk.submit(output=m.OutputFormat(json=True))
    desk.escalated(answer=None)
    desk.cloud_failed(2)
    desk.wake()
    assert desk.job().attempt == 3
    desk.failed(3, retryable=False)
    result = result_of(desk)
    assert (result.status, result.code, result.text) == (m.JobStatus.FAILED, "onnx", "")


def test_a_call_of_an_older_attempt_moves_nothing(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    desk.cloud_finished(1)
    desk.cloud_failed(1)
    assert desk.job().status is m.JobStatus.ESCALATED


def test_cloud_text_streams_from_zero(desk: Desk) -> None:
    desk.submit(stream=True)
    desk.escalated()
    for number, text in enumerate(("az", "ure")):
        desk.handle(e.CompletionGrew(job=m.JobKey("K1"), attempt=2, text=text))
        assert desk.sent(topics.TOKENS, m.TokenChunk) == [m.TokenChunk(i=number, t=text)]


def test_without_a_provider_the_kept_answer_is_given_and_says_so(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    desk.cloud_failed(2)
    result = result_of(desk)
    assert (result.status, result.text) == (m.JobStatus.OK, "blue")
    assert (result.answered_by, result.degraded) == (m.AnsweredBy.EDGE, True)
    assert (result.reason, result.code) == (m.Reason.LOW_CONFIDENCE, "no_provider")
    assert "DEEPSEEK_API_KEY" in result.message


def test_a_job_that_asked_for_the_cloud_is_answered_by_a_board_if_there_is_none(
    desk: Desk,
) -> None:
    desk.submit(escalate="always")
    desk.cloud_failed(1)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert (assignment.attempt, assignment.escalate) == (2, m.Escalate.NEVER)
    desk.done(2)
    result = result_of(desk)
    assert (result.status, result.degraded) == (m.JobStatus.OK, True)
    assert (result.reason, result.code) == (m.Reason.REQUESTED, "no_provider")


@pytest.mark.parametrize("fields", [{"prompt": "x" * 9_000}, {"model": "huge"}])
def test_a_job_that_no_board_can_answer_fails_with_the_providers_code(
    desk: Desk, fields: dict[str, object]
) -> None:
    desk.submit(escalate="always", **fields)
    desk.cloud_failed(1)
    assert (result_of(desk).status, result_of(desk).code) == (m.JobStatus.FAILED, "no_provider")
    assert desk.job().dead


def test_a_site_job_that_asks_for_the_cloud_is_answered_by_a_board(desk: Desk) -> None:
    desk.submit(escalate="always", privacy="site")
    assert desk.receivers(topics.ASSIGN) == ["w1"]
    desk.done()
    assert (result_of(desk).degraded, result_of(desk).code) == (True, "privacy_site")


def test_no_request_to_a_provider_can_even_be_made_of_a_job_that_may_not_leave(desk: Desk) -> None:
    desk.submit(privacy="site")
    with pytest.raises(RejectedError) as caught:
        c.CompletionRequest.of(desk.job(), timeout_ms=1_000)
    assert caught.value.code == "privacy_site"


@pytest.mark.parametrize("bound", [{"privacy": "site"}, {"escalate": "never"}])
def test_a_job_that_may_not_leave_never_reaches_a_provider(
    desk: Desk, bound: dict[str, object]
) -> None:
    desk.submit(**bound)
    desk.escalated()
    assert calls(desk) == []
    assert (result_of(desk).text, result_of(desk).degraded) == ("blue", True)


@pytest.mark.parametrize("reason", [m.Reason.OVERHEATED, m.Reason.TOO_SLOW])
def test_a_hot_or_slow_board_with_nothing_to_show_gives_way_to_another(
    desk: Desk, reason: m.Reason
) -> None:
    desk.submit(escalate="never")
    desk.worker("w2")
    desk.escalated(reason, answer=None)
    desk.wake()
    assert desk.receivers(topics.ASSIGN) == ["w2"]


def test_a_board_that_escalates_what_the_cloud_could_not_take_ends_the_job(desk: Desk) -> None:
    desk.submit(escalate="always")
    desk.cloud_failed(1)
    desk.escalated(attempt=2)
    result = result_of(desk)
    assert (result.text, result.degraded, result.code) == ("blue", True, "no_provider")


def test_what_was_too_slow_for_one_board_may_be_in_time_on_another(desk: Desk) -> None:
    desk.submit(deadline_ms=60_000)
    desk.worker("w2")
    desk.escalated(m.Reason.TOO_SLOW, answer=None)
    desk.cloud_failed(2)
    desk.wake()
    assert desk.receivers(topics.ASSIGN) == ["w2"]
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert assignment.escalate is m.Escalate.NEVER


def test_an_unsupported_job_without_a_cloud_fails(desk: Desk) -> None:
    desk.submit()
    desk.escalated(m.Reason.UNSUPPORTED, answer=None)
    desk.cloud_failed(2)
    assert result_of(desk).status is m.JobStatus.FAILED


def test_a_provider_that_names_a_pause_is_asked_again_after_it(desk: Desk) -> None:
    desk.submit(escalate="always")
    desk.cloud_failed(1, code="provider_rate_limited", retry_after_ms=4_000)
    before_ms = desk.now_ms
    desk.wake()
    assert desk.now_ms - before_ms == 4_000
    assert calls(desk)[0].attempt == 2
    desk.cloud_failed(2, retry_after_ms=10)
    desk.wake()
    desk.cloud_failed(3, code="provider_rate_limited", retry_after_ms=10)
    assert calls(desk) == []
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_while_all_providers_are_left_alone_a_second_best_answer_is_given_at_once(
    desk: Desk,
) -> None:
    desk.submit()
    desk.escalated()
    desk.cloud_failed(2, code="provider_open", retry_after_ms=25_000)
    result = result_of(desk)
    assert (result.text, result.degraded, result.code) == ("blue", True, "provider_open")
    desk.submit(2, escalate="always")
    opened = e.CompletionFailed(
        job=m.JobKey("K2"), attempt=1, code="provider_open", message="", retry_after_ms=25_000
    )
    desk.handle(opened)
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_where_no_board_was_ever_heard_of_the_breaker_is_waited_for() -> None:
    lonely = Desk()
    lonely.submit(escalate="always")
    lonely.cloud_failed(1, code="provider_open", retry_after_ms=5_000)
    assert lonely.job().status is m.JobStatus.ESCALATED
    lonely.wake()
    assert calls(lonely)[0].attempt == 2


@pytest.mark.parametrize(("after_ms", "waits"), [(19_999, True), (20_000, False)])
def test_where_no_board_came_in_the_first_moments_no_job_waits_for_one(
    after_ms: int, *, waits: bool
) -> None:
    lonely = Desk()
    lonely.engine.recover([], lonely.now_ms)
    lonely.now_ms += after_ms
    lonely.submit(escalate="always")
    lonely.cloud_failed(1, code="provider_unavailable")
    assert lonely.job().is_open == waits
    if not waits:
        assert result_of(lonely).code == "provider_unavailable"
    lonely.worker()
    assert lonely.receivers(topics.ASSIGN) == (["w1"] if waits else [])


def test_a_probe_under_way_is_waited_for_all_the_same(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    desk.cloud_failed(2, code="provider_open", retry_after_ms=1_000)
    assert desk.job().status is m.JobStatus.ESCALATED
    desk.wake()
    assert calls(desk)[0].attempt == 3


def outwait(desk: Desk, *, key: str = "K1", pause_ms: int = 250) -> int:
    """Let every call find all providers left alone; return how long the job waited."""
    since_ms = desk.now_ms
    while desk.job(key).is_open:
        attempt = desk.job(key).attempt
        desk.cloud_failed(attempt, code="provider_open", retry_after_ms=pause_ms, key=key)
        while desk.job(key).is_open and not calls(desk):
            desk.presence()
            desk.wake()
    return desk.now_ms - since_ms


def test_a_job_for_the_cloud_alone_waits_for_it_as_long_as_its_outage_is_short(desk: Desk) -> None:
    desk.submit(prompt="x" * 9_000, deadline_ms=120_000)
    assert 20_000 <= outwait(desk) <= 23_000
    result = desk.job().result
    assert result is not None
    assert (result.code, result.reason) == ("provider_open", m.Reason.TOO_LONG)
    desk.submit(2, prompt="x" * 9_001)
    assert outwait(desk, key="K2") == 0, "who comes later in an outage does not wait at all"


def test_a_job_that_may_wait_for_cheaper_hours_waits_for_the_end_of_an_outage(desk: Desk) -> None:
    desk.submit(prompt="x" * 9_000, defer="offpeak", deadline_ms=600_000)
    waited_ms, attempts = outwait(desk), desk.job().attempt
    assert 570_000 <= waited_ms < 600_000
    assert attempts < 60, "it need not ask every second"


def test_once_the_cloud_is_back_the_next_outage_is_waited_for_again(desk: Desk) -> None:
    desk.submit(prompt="x" * 9_000)
    outwait(desk)
    desk.submit(2, prompt="x" * 9_001)
    desk.cloud_finished(1, key="K2")
    desk.submit(3, prompt="x" * 9_002)
    assert outwait(desk, key="K3") >= 20_000


def test_boards_are_told_while_nobody_in_the_cloud_can_be_asked(desk: Desk) -> None:
    def is_told_away(number: int) -> bool:
        desk.submit(number)
        (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
        assert assignment.escalate is m.Escalate.AUTO
        desk.done(key=f"K{number}")
        return assignment.cloud_away

    assert not is_told_away(2)
    desk.submit(prompt="x" * 9_000)
    desk.cloud_failed(1, code="provider_open", retry_after_ms=250)
    assert is_told_away(3)
    desk.wake()
    desk.cloud_failed(2, code="provider_timeout", retry_after_ms=4_000)
    assert is_told_away(4), "who says nothing is not back"
    desk.wake()
    desk.cloud_finished(3)
    assert not is_told_away(5)


@pytest.mark.parametrize("code", ["provider_rate_limited", "provider_filtered"])
def test_a_refusal_that_somebody_there_gave_ends_an_outage(desk: Desk, code: str) -> None:
    desk.submit(escalate="always", model="huge")
    desk.cloud_failed(1, code="provider_open", retry_after_ms=250)
    desk.wake()
    desk.cloud_failed(2, code=code, retry_after_ms=250)
    desk.submit(2)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert not assignment.cloud_away


@pytest.mark.parametrize("code", ["provider_timeout", "provider_filtered", "provider_bad_request"])
def test_what_one_job_fails_of_is_no_outage(desk: Desk, code: str) -> None:
    desk.submit(escalate="always", model="huge")
    desk.cloud_failed(1, code=code)
    desk.submit(2)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert not assignment.cloud_away


def test_without_any_provider_boards_know_from_the_first_job_on() -> None:
    alone = Desk(has_cloud=False)
    alone.worker()
    alone.submit()
    (assignment,) = alone.sent(topics.ASSIGN, m.Assignment)
    assert assignment.cloud_away
    alone.escalated()
    alone.cloud_failed(2)
    assert (result_of(alone).text, result_of(alone).attempts) == ("blue", 2)
    assert result_of(alone).degraded


def test_boards_are_told_of_a_budget_that_is_spent() -> None:
    poor = Desk(EngineSettings(budget=BudgetSettings(daily_usd=0.001)))
    poor.worker()
    poor.submit()
    poor.escalated()
    poor.cloud_finished(2)
    poor.submit(2)
    (assignment,) = poor.sent(topics.ASSIGN, m.Assignment)
    assert assignment.cloud_away


def test_a_whole_answer_waits_a_moment_for_a_cloud_that_went_and_no_longer(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    assert outwait(desk) < 4_000
    result = desk.job().result
    assert result is not None
    assert (result.text, result.degraded, result.code) == ("blue", True, "provider_open")


def test_a_cloud_that_comes_back_answers_what_a_board_was_told_to_finish(desk: Desk) -> None:
    desk.submit(prompt="x" * 9_000)
    desk.cloud_failed(1, code="provider_open", retry_after_ms=250)
    desk.submit(2)
    desk.escalated(key="K2")
    desk.cloud_finished(2, key="K2")
    assert (result_of(desk).text, result_of(desk).degraded) == ("azure", False)


def test_a_call_that_never_came_back_counts_as_failed(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    while not desk.sent(topics.RESULT, m.JobResult):
        desk.presence()
        desk.wake()
    assert result_of(desk).code == "provider_timeout"
    assert desk.all_of(c.StopCompletion)


def test_at_the_deadline_a_kept_answer_is_better_than_none(desk: Desk) -> None:
    desk.submit(deadline_ms=8_000)
    desk.escalated()
    desk.wake()
    result = result_of(desk)
    assert (result.status, result.text, result.code) == (m.JobStatus.OK, "blue", "deadline")
    assert result.degraded
    assert desk.all_of(c.StopCompletion)


def test_recovery_makes_the_calls_anew_under_a_new_attempt(desk: Desk) -> None:
    desk.submit()
    desk.escalated()
    desk.restart()
    assert calls(desk)[0].attempt == 3
    desk.cloud_finished(2)
    assert desk.job().status is m.JobStatus.ESCALATED


def test_recovery_keeps_a_pause_that_a_provider_asked_for(desk: Desk) -> None:
    desk.submit(escalate="always")
    desk.cloud_failed(1, retry_after_ms=4_000)
    desk.restart()
    assert calls(desk) == []
    desk.wake()
    assert calls(desk)[0].attempt == 2
