"""The engine and its answer cache: who gets an earlier answer, and which answers are kept."""

from __future__ import annotations

import msgspec
import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.settings import CacheSettings, EngineSettings
from cloud_dispatcher.core.spending import BudgetSettings, TenantSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.answer_cache import CachedAnswer
from tests.unit.engine_desk import Desk

SAME = "Is hall 7 warm?"
HOUR_MS = 3_600_000


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker()
    return desk


def answered(desk: Desk, number: int = 1, **fields: object) -> None:
    """Let a board answer a job."""
    desk.submit(number, prompt=SAME, **fields)
    desk.done(key=f"K{number}")


def ask(desk: Desk, number: int = 2, **fields: object) -> m.JobResult | None:
    """Submit the same question again; return the result if it came at once."""
    desk.submit(number, **({"prompt": SAME} | fields))
    results = desk.sent(topics.RESULT, m.JobResult)
    return results[0] if results else None


def kept(desk: Desk) -> list[CachedAnswer]:
    return [x.answer for x in desk.commands if isinstance(x, c.KeepAnswer)]


def test_the_same_question_again_is_answered_at_once_without_a_board(desk: Desk) -> None:
    answered(desk)
    result = ask(desk)
    assert result is not None
    assert (result.text, result.model) == ("blue", "small")
    assert result.answered_by is m.AnsweredBy.CACHE
    assert (result.cost_usd, result.attempts, result.usage) == (0, 0, m.Usage())
    assert desk.receivers(topics.ASSIGN) == []
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    assert desk.job("K2").result == result


def test_what_the_cloud_answered_serves_again_too_and_costs_nothing(desk: Desk) -> None:
    desk.submit(1, prompt=SAME, escalate="always")
    desk.cloud_finished(1)
    result = ask(desk, escalate="always")
    assert result is not None
    assert (result.text, result.model, result.cost_usd) == ("azure", "deepseek", 0)
    assert result.simulated
    assert desk.all_of(c.StartCompletion) == []


def test_a_plain_question_gets_the_earlier_answer_as_text(desk: Desk) -> None:
    answered(desk)
    desk.submit(2, prompt=SAME, reply=ReplyTo(plain=True))
    assert desk.sent(topics.ANSWER, m.PlainText) == [m.PlainText(text="blue")]


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": "off"},
        {"privacy": "site"},
        {"temperature": 0.7},
        {"max_tokens": 65},
        {"escalate": "never"},
        {"prompt": "Is hall 8 warm?"},
        {"model": "small"},
        {"cache_ttl_ms": 500},
    ],
)
def test_an_answer_serves_only_who_wants_just_that(desk: Desk, fields: dict[str, object]) -> None:
    answered(desk)
    desk.now_ms += 1_000
    assert ask(desk, **fields) is None
    assert desk.receivers(topics.ASSIGN) == ["w1"]


@pytest.mark.parametrize("fields", [{"cache": "off"}, {"privacy": "site"}, {"temperature": 0.7}])
def test_what_must_not_be_given_again_is_not_kept(desk: Desk, fields: dict[str, object]) -> None:
    answered(desk, **fields)
    assert kept(desk) == []


def test_a_sampled_answer_is_kept_for_a_short_while_where_the_job_asks(desk: Desk) -> None:
    sampled = {"temperature": 0.7, "cache": "always"}
    answered(desk, **sampled)
    assert kept(desk)[0].until_at_ms == desk.now_ms + 300_000
    assert ask(desk, **sampled) is not None


def test_a_job_says_how_long_its_answer_is_kept(desk: Desk) -> None:
    answered(desk, cache_ttl_ms=5_000)
    desk.now_ms += 4_999
    assert ask(desk, 2) is not None
    desk.now_ms += 1
    assert ask(desk, 3) is None


def test_an_answer_is_kept_for_an_hour(desk: Desk) -> None:
    answered(desk)
    assert kept(desk)[0].until_at_ms == desk.now_ms + HOUR_MS
    desk.now_ms += HOUR_MS
    desk.worker(boot="b2")
    assert ask(desk) is None


def test_an_answer_that_max_tokens_cut_is_not_kept(desk: Desk) -> None:
    desk.submit(1, prompt=SAME)
    cut = m.LocalAnswer(text="It is", model="small", finish=m.FinishReason.LENGTH)
    done = m.JobDone(attempt=1, answer=cut)
    desk.handle(e.DoneReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), done=done))
    assert desk.job("K1").result is not None
    assert desk.sent(topics.RESULT, m.JobResult)[0].finish is m.FinishReason.LENGTH
    assert kept(desk) == []


def test_a_cut_answer_of_the_cloud_is_not_kept(desk: Desk) -> None:
    desk.submit(1, prompt=SAME, escalate="always")
    whole = e.CompletionFinished(
        job=m.JobKey("K1"), attempt=1, text="It", model="d", usage=m.Usage(), cost_usd=0, cut=True
    )
    desk.handle(whole)
    assert desk.sent(topics.RESULT, m.JobResult)[0].finish is m.FinishReason.LENGTH
    assert kept(desk) == []


def test_a_kept_local_answer_and_a_failure_are_not_kept_as_answers(desk: Desk) -> None:
    desk.submit(1, prompt=SAME)
    desk.escalated()
    desk.cloud_failed(2)
    assert desk.sent(topics.RESULT, m.JobResult)[0].degraded
    assert kept(desk) == []
    desk.submit(2, prompt="other")
    desk.cancel(2)
    assert kept(desk) == []


def test_an_answer_of_the_wrong_form_is_not_kept(desk: Desk) -> None:
    desk.submit(1, prompt=SAME, escalate="always")
    desk.cloud_finished(1, misfit="no JSON")
    assert kept(desk) == []


def test_a_boards_own_cached_answer_is_not_kept_for_another_hour(desk: Desk) -> None:
    desk.submit(1, prompt=SAME)
    answer = m.LocalAnswer(text="blue", model="small", cached=True)
    done = m.JobDone(attempt=1, answer=answer)
    desk.handle(e.DoneReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), done=done))
    assert desk.sent(topics.RESULT, m.JobResult)[0].answered_by is m.AnsweredBy.CACHE
    assert kept(desk) == []


def test_after_a_model_update_the_fleet_answers_anew(desk: Desk) -> None:
    answered(desk)
    model = m.ModelInfo(name="small", version="2", context_tokens=1_000)
    info = m.WorkerInfo(boot="b1", models=(model,))
    desk.handle(e.InfoReceived(worker=m.WorkerId("w1"), info=info))
    assert ask(desk) is None
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_one_tenants_answers_serve_no_other_tenant() -> None:
    north = TenantSettings(name="north", devices=("d1",))
    desk = Desk(EngineSettings(budget=BudgetSettings(tenants=(north,))))
    desk.worker()
    answered(desk)
    submit = m.JobSubmit(prompt=SAME)
    mine = desk.engine.wanted_answer(m.DeviceId("d1"), submit)
    assert mine is None, "it is in memory: the store need not look"
    other = e.JobSubmitted(
        key=m.JobKey("K9"), device=m.DeviceId("d2"), id=m.JobId("9"), submit=submit, reply=ReplyTo()
    )
    desk.handle(other)
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_an_answer_from_the_store_serves_and_is_in_memory_then(desk: Desk) -> None:
    answered(desk)
    (answer,) = kept(desk)
    desk.restart()
    desk.worker()
    submit = m.JobSubmit(prompt=SAME)
    assert desk.engine.wanted_answer(m.DeviceId("d1"), submit) == answer.key
    event = e.JobSubmitted(
        key=m.JobKey("K2"),
        device=m.DeviceId("d1"),
        id=m.JobId("2"),
        submit=submit,
        reply=ReplyTo(),
        answer=answer,
    )
    desk.handle(event)
    assert desk.sent(topics.RESULT, m.JobResult)[0].answered_by is m.AnsweredBy.CACHE
    assert desk.all_of(c.UseAnswer) == [c.UseAnswer(key=answer.key, at_ms=desk.now_ms)]
    assert desk.engine.wanted_answer(m.DeviceId("d1"), submit) is None


def test_an_answer_to_another_question_is_not_taken_for_this_one(desk: Desk) -> None:
    answered(desk)
    (answer,) = kept(desk)
    other = msgspec.structs.replace(answer, key=b"other")
    event = e.JobSubmitted(
        key=m.JobKey("K2"),
        device=m.DeviceId("d1"),
        id=m.JobId("2"),
        submit=m.JobSubmit(prompt="Is hall 8 warm?"),
        reply=ReplyTo(),
        answer=other,
    )
    desk.handle(event)
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_a_full_queue_refuses_no_question_that_was_answered() -> None:
    desk = Desk(EngineSettings(queue_limit=1))
    desk.worker()
    answered(desk)
    desk.submit(3)
    desk.submit(4)
    desk.submit(5)
    assert desk.sent(topics.ACK, m.JobAck)[0].code == "busy"
    assert ask(desk) is not None


def test_a_cache_that_is_switched_off_gives_and_keeps_nothing() -> None:
    desk = Desk(EngineSettings(cache=CacheSettings(enabled=False)))
    desk.worker()
    answered(desk)
    assert kept(desk) == []
    assert ask(desk) is None


@pytest.mark.parametrize(
    ("fields", "cache_ttl_ms"),
    [
        ({}, HOUR_MS),
        ({"privacy": "site"}, HOUR_MS),
        ({"cache_ttl_ms": 5_000}, 5_000),
        ({"cache": "off"}, 0),
        ({"temperature": 0.7}, 0),
        ({"temperature": 0.7, "cache": "always"}, 300_000),
    ],
)
def test_a_board_is_told_how_long_its_answer_serves_and_whom(
    desk: Desk, fields: dict[str, object], cache_ttl_ms: int
) -> None:
    desk.submit(1, prompt=SAME, **fields)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert (assignment.cache_ttl_ms, assignment.tenant) == (cache_ttl_ms, "default")


def admin(desk: Desk, op: m.AdminOp, **fields: object) -> m.AdminReply:
    request = msgspec.convert({"req": "r1", "op": op, **fields}, m.AdminRequest)
    desk.handle(e.AdminAsked(admin="ops", request=request))
    return desk.sent(topics.ADMIN_REPLY, m.AdminReply)[0]


def test_an_operator_clears_the_cache_of_the_dispatcher_and_of_the_boards(desk: Desk) -> None:
    answered(desk)
    assert admin(desk, m.AdminOp.CACHE_CLEAR).ok
    assert desk.all_of(c.ForgetAnswers) == [c.ForgetAnswers()]
    (command,) = desk.sent(topics.COMMAND, m.WorkerCommand)
    assert command.op is m.WorkerOp.FORGET_ANSWERS
    assert desk.engine.wanted_answer(m.DeviceId("d1"), m.JobSubmit(prompt=SAME)) is not None
    assert ask(desk) is None


def test_what_was_read_from_the_store_before_all_was_cleared_does_not_come_back(desk: Desk) -> None:
    answered(desk)
    (answer,) = kept(desk)
    admin(desk, m.AdminOp.CACHE_CLEAR)
    submit = m.JobSubmit(prompt=SAME)
    event = e.JobSubmitted(
        key=m.JobKey("K2"),
        device=m.DeviceId("d1"),
        id=m.JobId("2"),
        submit=submit,
        reply=ReplyTo(),
        answer=answer,
    )
    desk.handle(event)
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_an_operator_gives_answers_before_anybody_asks(desk: Desk) -> None:
    lines = [
        {"submit": {"prompt": SAME}, "text": "It is.", "model": "big"},
        {"submit": {"prompt": SAME, "temperature": 0.7}, "text": "no"},
        {"submit": {"prompt": SAME, "privacy": "site"}, "text": "no"},
    ]
    reply = admin(desk, m.AdminOp.CACHE_PREWARM, answers=lines)
    assert reply.kept == (True, False, False)
    result = ask(desk)
    assert result is not None
    assert (result.text, result.model, result.answered_by) == ("It is.", "big", "cache")


def test_given_answers_serve_the_tenant_they_are_for(desk: Desk) -> None:
    lines = [{"submit": {"prompt": SAME}, "text": "It is."}]
    assert admin(desk, m.AdminOp.CACHE_PREWARM, answers=lines, tenant="north").kept == (True,)
    assert desk.all_of(c.KeepAnswer)[0].tenant == "north"  # type: ignore[attr-defined]
    assert ask(desk) is None


def test_an_operator_sees_what_is_in_memory_and_how_much_was_given(desk: Desk) -> None:
    answered(desk)
    ask(desk, 2)
    row = m.CacheRow(tenant="default", answers=9, size_bytes=99, hits=7)
    view = desk.engine.cache_view((row,))
    assert (view.tenants, view.given, view.in_memory) == ((row,), 1, 1)
    assert view.memory_bytes > 0


@pytest.mark.parametrize("op", [m.AdminOp.CACHE_CLEAR, m.AdminOp.CACHE_PREWARM])
def test_a_cache_that_is_off_says_so(op: m.AdminOp) -> None:
    desk = Desk(EngineSettings(cache=CacheSettings(enabled=False)))
    assert admin(desk, op).code == "cache_off"


@pytest.mark.parametrize("how", ["done", "cancelled", "failed", "refused"])
def test_of_a_question_that_the_dispatcher_asks_itself_nobody_is_told(how: str) -> None:
    desk = Desk(EngineSettings(queue_limit=1))
    if how == "refused":
        desk.submit(2)
    else:
        desk.worker()
    desk.submit(1, prompt=SAME, reply=ReplyTo(silent=True))
    told = list(desk.commands)
    if how == "done":
        desk.done()
        assert len(kept(desk)) == 1
    elif how == "cancelled":
        assert desk.admin(m.AdminOp.JOB_CANCEL, job="K1").ok
    elif how == "failed":
        desk.failed(retryable=False)
    told += desk.commands
    channels = {x.channel.receivers for x in told if isinstance(x, c.Send)}
    assert (topics.Role.DEVICE,) not in channels
    if how != "refused":
        assert desk.job().told
        assert desk.engine.get(m.JobKey("K1")) is None
