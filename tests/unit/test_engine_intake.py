"""The engine and the devices: taking in, refusing, repeating, telling, cancelling."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.codec import encode
from tests.unit.engine_desk import Desk

REPLY = ReplyTo(topic="fleet/v1/dev/d1/mine", correlation_data=b"42")


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker()
    return desk


def replies(desk: Desk) -> list[c.Reply]:
    return [command for command in desk.commands if isinstance(command, c.Reply)]


def test_the_same_id_again_is_the_same_job(desk: Desk) -> None:
    desk.submit()
    desk.submit()
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    assert desk.all_of(c.SaveJob) == []
    assert desk.receivers(topics.ASSIGN) == []


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_a_finished_job_is_replayed_not_run_again(desk: Desk, *, is_confirmed: bool) -> None:
    desk.submit()
    desk.done()
    first = desk.sent(topics.RESULT, m.JobResult)
    if is_confirmed:
        desk.confirmed()
    desk.submit(reply=REPLY)
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    assert desk.sent(topics.RESULT, m.JobResult) == first
    assert replies(desk)[0].message == first[0]
    assert desk.receivers(topics.ASSIGN) == []


def test_beyond_the_limit_a_submission_is_refused_as_busy_and_not_saved() -> None:
    desk = Desk(EngineSettings(queue_limit=2))
    for number in (1, 2, 3):
        desk.submit(number)
    (ack,) = desk.sent(topics.ACK, m.JobAck)
    assert (ack.status, ack.code) == (m.AckStatus.REJECTED, "busy")
    assert ack.retry_after_ms >= 2_000
    assert desk.all_of(c.SaveJob) == []


def test_an_unknown_model_is_refused_with_the_known_ones(desk: Desk) -> None:
    desk.submit(model="huge")
    (ack,) = desk.sent(topics.ACK, m.JobAck)
    assert ack.code == "unknown_model"
    assert "small" in ack.message


def test_before_any_worker_is_known_every_model_may_come() -> None:
    desk = Desk()
    desk.submit(model="small")
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    desk.worker()
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_what_no_board_can_hold_goes_straight_to_the_cloud(desk: Desk) -> None:
    desk.submit(prompt="x" * 9_000)
    (start,) = desk.all_of(c.StartCompletion)
    assert isinstance(start, c.StartCompletion)
    assert desk.job().reason is m.Reason.TOO_LONG
    desk.cloud_finished(1)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.answered_by, result.reason) == (m.AnsweredBy.CLOUD, m.Reason.TOO_LONG)
    assert (result.cost_usd, result.simulated, result.text) == (0.001, True, "azure")


@pytest.mark.parametrize("bound", [{"privacy": "site"}, {"escalate": "never"}])
def test_what_no_board_can_hold_and_may_not_leave_fails(
    desk: Desk, bound: dict[str, object]
) -> None:
    desk.submit(prompt="x" * 9_000, **bound)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.FAILED, "too_long")
    assert desk.job().dead


def test_a_malformed_submission_is_refused_with_its_code(desk: Desk) -> None:
    device, job_id = m.DeviceId("d1"), m.JobId("1")
    event = e.SubmissionMalformed(
        device=device, id=job_id, reply=REPLY, code="invalid_field", message="no prompt"
    )
    desk.handle(event)
    (ack,) = desk.sent(topics.ACK, m.JobAck)
    assert (ack.status, ack.code) == (m.AckStatus.REJECTED, "invalid_field")
    assert replies(desk)[0].correlation_data == b"42"


def test_a_plain_question_gets_one_plain_text_and_nothing_else(desk: Desk) -> None:
    desk.submit(reply=ReplyTo(plain=True))
    assert desk.receivers(topics.ACK) == []
    desk.done()
    assert desk.sent(topics.ANSWER, m.PlainText)[0].text == "blue"
    assert desk.receivers(topics.RESULT) == []


def test_a_plain_question_that_fails_or_is_refused_hears_why(desk: Desk) -> None:
    desk.submit(1, reply=ReplyTo(plain=True))
    desk.failed(retryable=False)
    assert "(onnx)" in desk.sent(topics.ANSWER, m.PlainText)[0].text
    desk.submit(2, reply=ReplyTo(plain=True), model="huge")
    assert "(unknown_model)" in desk.sent(topics.ANSWER, m.PlainText)[0].text
    assert desk.receivers(topics.ACK) == []


def test_a_result_also_goes_to_the_response_topic(desk: Desk) -> None:
    desk.submit(reply=REPLY)
    assert replies(desk) == []
    desk.done()
    (reply,) = replies(desk)
    assert (reply.topic, reply.correlation_data) == (REPLY.topic, b"42")
    assert reply.message == desk.sent(topics.RESULT, m.JobResult)[0]


def test_a_compact_result_is_small(desk: Desk) -> None:
    desk.submit(compact=True)
    desk.done()
    (result,) = desk.sent(topics.RESULT, m.CompactResult)
    assert (result.text, result.answered_by) == ("blue", m.AnsweredBy.EDGE)


# ---------------------------------------------------------------- cancelling


def test_cancelling_a_waiting_job_ends_it() -> None:
    desk = Desk()
    desk.submit()
    desk.cancel()
    assert desk.sent(topics.RESULT, m.JobResult)[0].status is m.JobStatus.CANCELLED
    assert desk.engine.summary().queued == 0


def test_cancelling_a_running_job_stops_its_worker_and_settles_later(desk: Desk) -> None:
    desk.submit()
    desk.cancel()
    assert desk.receivers(topics.WORKER_CANCEL) == ["w1"]
    desk.done()
    assert desk.job().status is m.JobStatus.CANCELLED
    assert desk.receivers(topics.SETTLED) == ["w1"]


def test_cancelling_an_escalated_job_stops_the_provider_call(desk: Desk) -> None:
    desk.submit(escalate="always")
    desk.cancel()
    assert desk.all_of(c.StopCompletion) == [c.StopCompletion(job=m.JobKey("K1"))]
    desk.cloud_finished(1)
    assert [type(command) for command in desk.commands] == [c.RecordSpend], "it cost all the same"


def test_cancelling_a_finished_job_replays_its_result(desk: Desk) -> None:
    desk.submit()
    desk.done()
    desk.confirmed()
    desk.cancel()
    assert desk.sent(topics.RESULT, m.JobResult)[0].status is m.JobStatus.OK
    assert desk.all_of(c.SaveJob) == []


def test_cancelling_an_unknown_job_is_refused(desk: Desk) -> None:
    desk.cancel(9)
    assert desk.sent(topics.ACK, m.JobAck)[0].code == "unknown_job"


# ---------------------------------------------------------------- the outbox


def test_an_unconfirmed_result_is_told_again_when_the_broker_forgot(desk: Desk) -> None:
    desk.submit()
    desk.done()
    result = desk.sent(topics.RESULT, m.JobResult)
    desk.handle(e.LinkRestored(session_present=True))
    assert desk.sent(topics.RESULT, m.JobResult) == []
    desk.handle(e.LinkRestored(session_present=False))
    assert desk.sent(topics.RESULT, m.JobResult) == result


def test_an_unconfirmed_result_is_told_again_after_a_restart(desk: Desk) -> None:
    desk.submit()
    desk.done()
    result = desk.sent(topics.RESULT, m.JobResult)
    desk.restart()
    assert desk.sent(topics.RESULT, m.JobResult) == result


def test_a_refused_result_is_told_again_later_and_in_the_end_only_kept() -> None:
    desk = Desk(EngineSettings(result_tells_max=3))
    desk.submit()
    desk.cancel()
    refusal = e.ResultRefused(job=m.JobKey("K1"), code="not_authorized")
    for _ in range(2):
        desk.handle(refusal)
        desk.wake()
        assert len(desk.sent(topics.RESULT, m.JobResult)) == 1
    desk.handle(refusal)
    assert desk.engine.next_wake_at_ms() is None
    desk.submit()
    assert desk.sent(topics.RESULT, m.JobResult)[0].status is m.JobStatus.CANCELLED


def test_a_result_that_nobody_heard_is_told_again_for_a_while() -> None:
    desk = Desk(EngineSettings(result_unheard_max=2))
    desk.submit()
    desk.cancel()
    unheard = e.ResultRefused(job=m.JobKey("K1"), code="unheard")
    desk.handle(unheard)
    desk.wake()
    assert len(desk.sent(topics.RESULT, m.JobResult)) == 1
    desk.handle(unheard)
    assert desk.engine.next_wake_at_ms() is None
    desk.submit()
    assert desk.sent(topics.RESULT, m.JobResult)[0].status is m.JobStatus.CANCELLED


def test_a_full_bus_never_uses_up_the_tells() -> None:
    desk = Desk(EngineSettings(result_tells_max=2))
    desk.submit()
    desk.cancel()
    for _ in range(5):
        desk.handle(e.ResultRefused(job=m.JobKey("K1"), code="bus_full"))
        desk.wake()
        assert len(desk.sent(topics.RESULT, m.JobResult)) == 1


# ---------------------------------------------------------------- operators


def test_an_operator_sees_a_job_without_its_prompt(desk: Desk) -> None:
    desk.submit()
    reply = desk.admin(m.AdminOp.JOB_SHOW, job="K1")
    (view,) = reply.jobs
    assert (view.status, view.worker, view.prompt_chars) == (m.JobStatus.ASSIGNED, "w1", 23)
    assert not desk.admin(m.AdminOp.JOB_SHOW, job="K7").ok


def test_an_operator_cancels_a_job(desk: Desk) -> None:
    desk.submit()
    assert desk.admin(m.AdminOp.JOB_CANCEL, job="K1").ok
    assert desk.receivers(topics.WORKER_CANCEL) == ["w1"]
    assert desk.admin(m.AdminOp.JOB_CANCEL, job="K1").code == "job_finished"


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_a_dead_letter_is_queued_anew_and_its_attempts_go_on(
    desk: Desk, *, is_confirmed: bool
) -> None:
    desk.submit(deadline_ms=9_000)
    desk.failed(retryable=False)
    if is_confirmed:
        desk.confirmed()
    desk.now_ms += 60_000
    desk.presence()
    reply = desk.admin(m.AdminOp.JOB_RETRY, job="K1")
    assert reply.ok
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert (assignment.attempt, assignment.deadline_ms) == (2, 9_000)
    assert not desk.job().dead
    desk.done(2)
    assert desk.sent(topics.RESULT, m.JobResult)[0].status is m.JobStatus.OK


def test_open_and_answered_jobs_are_not_retried(desk: Desk) -> None:
    desk.submit()
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1").code == "job_open"
    desk.done()
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1").code == "job_answered"


def test_drain_and_resume_take_hold_at_once_and_tell_the_worker(desk: Desk) -> None:
    reply = desk.admin(m.AdminOp.WORKER_DRAIN, worker="w1")
    assert reply.workers[0].status is m.PresenceStatus.DRAINING
    assert desk.sent(topics.COMMAND, m.WorkerCommand)[0].op is m.WorkerOp.DRAIN
    desk.submit()
    assert desk.receivers(topics.ASSIGN) == []
    desk.admin(m.AdminOp.WORKER_RESUME, worker="w1")
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_a_reload_is_passed_on_and_an_unknown_worker_refused(desk: Desk) -> None:
    assert desk.admin(m.AdminOp.WORKER_RELOAD, worker="w1").ok
    assert desk.sent(topics.COMMAND, m.WorkerCommand)[0].op is m.WorkerOp.RELOAD
    assert desk.admin(m.AdminOp.WORKER_RELOAD, worker="w9").code == "unknown_worker"


def test_workers_are_listed_with_their_weights(desk: Desk) -> None:
    (view,) = desk.admin(m.AdminOp.WORKERS_LIST).workers
    assert (view.compute, view.bandwidth) == (1.0, 0.5)
    assert view.weight == pytest.approx(0.8)
    assert desk.admin(m.AdminOp.WORKER_SHOW, worker="w1").workers == (view,)


def test_a_fleet_of_any_size_is_listed_page_by_page_and_none_is_left_out() -> None:
    desk = Desk()
    names = [f"w{number:04}" for number in range(1_500)]
    for name in reversed(names):
        desk.inform(name, m.WorkerInfo(boot="b1", labels={"about": "x" * 12_000}))
    listed, after = list[str](), None
    while True:
        request = m.AdminRequest(req="r", op=m.AdminOp.WORKERS_LIST, limit=1_000, after=after)
        desk.handle(e.AdminAsked(admin="ops", request=request))
        (reply,) = desk.sent(topics.ADMIN_REPLY, m.AdminReply)
        assert len(encode(reply)) <= m.AdminReply.MAX_BYTES
        listed += [view.worker for view in reply.workers]
        if reply.go_on is None:
            break
        after = reply.go_on
    assert listed == names
    request = m.AdminRequest(req="r", op=m.AdminOp.WORKERS_LIST, limit=2)
    desk.handle(e.AdminAsked(admin="ops", request=request))
    (reply,) = desk.sent(topics.ADMIN_REPLY, m.AdminReply)
    assert ([view.worker for view in reply.workers], reply.go_on) == (names[:2], names[1])


def test_listing_jobs_is_left_to_the_store(desk: Desk) -> None:
    request = m.AdminRequest(req="r1", op=m.AdminOp.JOBS_LIST)
    assert desk.handle(e.AdminAsked(admin="ops", request=request)) == []
