"""The engine and the boards: leases, fences, retries, presence, what is held."""

from __future__ import annotations

import typing

import pytest
from msgspec.structs import replace

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.admin import view_of
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.settings import EngineSettings, RetrySettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import ANSWER, Desk


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker()
    return desk


def test_every_event_has_a_handler(desk: Desk) -> None:
    assert set(desk.engine._handlers) == set(typing.get_args(e.AnyEvent))


def test_a_job_walks_from_submission_to_confirmation(desk: Desk) -> None:
    desk.submit(max_tokens=9, deadline_ms=8_000)
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert (assignment.job, assignment.attempt, assignment.deadline_ms) == ("K1", 1, 8_000)
    assert assignment.generation.max_tokens == 9
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    desk.now_ms += 40
    desk.started()
    assert desk.job().status is m.JobStatus.RUNNING
    desk.now_ms += 60
    desk.done()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.id, result.status, result.text) == ("1", m.JobStatus.OK, "blue")
    assert (result.answered_by, result.worker, result.attempts) == (m.AnsweredBy.EDGE, "w1", 1)
    assert (result.timing_ms.queued, result.timing_ms.total) == (0, 100)
    (settled,) = desk.sent(topics.SETTLED, m.Settled)
    assert settled.jobs == (m.AttemptRef(job="K1", attempt=1),)
    desk.confirmed()
    assert desk.job().told
    assert desk.engine.get(m.JobKey("K1")) is None


@pytest.mark.parametrize("capabilities", [(m.JOINT_ASSIGNMENTS,), ()])
def test_only_who_can_read_several_jobs_at_once_may_get_them(
    desk: Desk, capabilities: tuple[str, ...]
) -> None:
    model = m.ModelInfo(name="small", version="1", context_tokens=1_000)
    info = m.WorkerInfo(boot="b1", models=(model,), capabilities=capabilities)
    desk.handle(e.InfoReceived(worker=m.WorkerId("w1"), info=info))
    desk.submit()
    (send,) = [x for x in desk.all_of(c.Send) if x.channel is topics.ASSIGN]
    assert send.joint is bool(capabilities)


def test_answers_that_came_together_are_each_judged_for_itself() -> None:
    desk = Desk()
    desk.worker(slots=4)
    for number in range(1, 4):
        desk.submit(number)
    further = [
        m.FurtherAnswer(job=job, attempt=attempt, answer=ANSWER)
        for job, attempt in (("K2", 1), ("K3", 7), ("K9", 1))
    ]
    done = m.JobDone(attempt=1, answer=ANSWER, more=tuple(further))
    desk.handle(e.DoneReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), done=done))
    assert [result.id for result in desk.sent(topics.RESULT, m.JobResult)] == ["1", "2"]
    assert desk.job("K3").status is m.JobStatus.ASSIGNED, "an older attempt moves nothing"
    settled = [ref for one in desk.sent(topics.SETTLED, m.Settled) for ref in one.jobs]
    assert [(ref.job, ref.attempt) for ref in settled] == [
        ("K1", 1),
        ("K2", 1),
        ("K3", 7),
        ("K9", 1),
    ]


def test_a_job_waits_for_a_free_slot_and_takes_it_at_once(desk: Desk) -> None:
    desk.submit(1)
    desk.submit(2)
    assert desk.receivers(topics.ASSIGN) == []
    desk.submit(3, priority=9)
    desk.done()
    (assignment,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert assignment.job == "K3"
    assert desk.engine.summary().queued == 1


def test_the_position_counts_those_that_are_served_before(desk: Desk) -> None:
    for number in range(1, 5):
        desk.submit(number)
    desk.submit(5, priority=9)
    assert desk.sent(topics.ACK, m.JobAck)[0].position == 0
    desk.submit(6)
    assert desk.sent(topics.ACK, m.JobAck)[0].position == 4


def test_tokens_reach_a_device_that_wants_them_and_renew_the_lease(desk: Desk) -> None:
    desk.submit(1, stream=True)
    chunk = m.WorkerTokenChunk(attempt=1, i=0, t="bl")
    tokens = e.TokensReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), chunk=chunk)
    desk.handle(tokens, after_ms=20_000)
    assert desk.sent(topics.TOKENS, m.TokenChunk) == [m.TokenChunk(i=0, t="bl")]
    assert desk.job().lease_until_ms == desk.now_ms + 30_000
    desk.done()
    assert desk.sent(topics.RESULT, m.JobResult)[0].timing_ms.first_token == 20_000


def test_tokens_of_a_job_that_does_not_stream_go_nowhere(desk: Desk) -> None:
    desk.submit(1, stream=True, reply=ReplyTo(plain=True))
    chunk = m.WorkerTokenChunk(attempt=1, i=0, t="bl")
    desk.handle(e.TokensReceived(worker=m.WorkerId("w1"), job=m.JobKey("K1"), chunk=chunk))
    assert desk.commands == []


def test_a_lease_that_is_not_renewed_is_over_and_the_job_is_given_to_another(desk: Desk) -> None:
    desk.submit()
    desk.worker("w2")
    for _ in range(9):
        desk.presence("w1")
        desk.presence("w2")
        desk.wake()
        if desk.receivers(topics.ASSIGN):
            break
    assert desk.receivers(topics.ASSIGN) == ["w2"]
    assert desk.job().attempt == 2
    desk.done(1, "w1")
    assert desk.job().status is m.JobStatus.ASSIGNED
    assert desk.receivers(topics.SETTLED) == ["w1"]


def test_an_answer_counts_while_nobody_was_given_a_later_attempt(desk: Desk) -> None:
    desk.submit()
    desk.presence(status=m.PresenceStatus.OFFLINE)
    assert desk.job().status is m.JobStatus.QUEUED
    desk.done()
    assert desk.job().status is m.JobStatus.OK
    assert desk.engine.summary().queued == 0


def test_an_older_attempt_at_the_same_worker_moves_nothing(desk: Desk) -> None:
    desk.submit()
    desk.failed(1)
    desk.wake()
    assert desk.job().attempt == 2
    desk.done(1)
    assert desk.job().status is m.JobStatus.ASSIGNED
    assert desk.all_of(c.SaveJob) == []
    desk.started(1)
    assert desk.job().status is m.JobStatus.ASSIGNED
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)[0].attempt == 1


def test_a_worker_that_goes_on_with_a_stale_attempt_is_told_once_a_second(desk: Desk) -> None:
    for after_ms, times in ((0, 1), (900, 0), (200, 1)):
        desk.now_ms += after_ms
        desk.started(3)
        assert len(desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)) == times


def test_a_lapsed_attempt_is_not_resumed_beyond_the_slots(desk: Desk) -> None:
    desk.submit(1)
    desk.presence(status=m.PresenceStatus.OFFLINE)
    desk.presence()
    desk.submit(2)
    desk.held(("K1", 1), ("K2", 1))
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)[0].job == "K1"
    assert desk.engine.workers()[0].inflight == 1


def test_a_lapsed_attempt_is_resumed_when_its_worker_comes_back_in_time(desk: Desk) -> None:
    desk.submit()
    desk.presence(status=m.PresenceStatus.OFFLINE)
    desk.presence()
    desk.held(("K1", 1))
    assert desk.job().status is m.JobStatus.RUNNING
    assert desk.job().attempt == 1
    assert desk.receivers(topics.WORKER_CANCEL) == []


def test_what_the_only_board_finished_alone_is_not_given_to_it_again(desk: Desk) -> None:
    desk.submit()
    desk.presence(status=m.PresenceStatus.OFFLINE)
    # Long enough that the job waits for any board.
    desk.handle(e.TimePassed(), after_ms=120_000)
    desk.presence(status=m.PresenceStatus.DRAINING)
    desk.held(finished=(("K1", 1),))
    desk.done()
    assert desk.job().status is m.JobStatus.OK
    desk.presence()
    assert desk.receivers(topics.ASSIGN) == []
    assert desk.job().attempt == 1


def test_a_will_of_an_earlier_boot_changes_nothing(desk: Desk) -> None:
    desk.submit()
    desk.presence(status=m.PresenceStatus.OFFLINE, boot="b0")
    assert desk.job().status is m.JobStatus.ASSIGNED
    desk.presence(status=m.PresenceStatus.OFFLINE)
    assert desk.job().status is m.JobStatus.QUEUED


def test_a_silent_worker_counts_as_offline_until_it_is_heard(desk: Desk) -> None:
    desk.wake()
    assert desk.engine.workers()[0].status is m.PresenceStatus.OFFLINE
    desk.submit()
    assert desk.receivers(topics.ASSIGN) == []
    state = m.WorkerState(ts=0, seq=1, status=m.Activity.IDLE, cpu_pct=1, mem_pct=1, inflight=0)
    desk.handle(e.StateReceived(worker=m.WorkerId("w1"), state=state))
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_a_draining_worker_keeps_its_job_and_gets_no_other(desk: Desk) -> None:
    desk.worker("w1", slots=2)
    desk.submit(1)
    desk.presence(status=m.PresenceStatus.DRAINING)
    desk.submit(2)
    assert desk.receivers(topics.ASSIGN) == []
    desk.done()
    assert desk.job().status is m.JobStatus.OK
    assert desk.engine.summary().queued == 1


def test_a_removed_worker_is_forgotten_and_its_job_given_back(desk: Desk) -> None:
    desk.submit()
    desk.handle(e.PresenceChanged(worker=m.WorkerId("w1"), presence=None))
    assert desk.engine.workers() == []
    assert desk.job().status is m.JobStatus.QUEUED


def test_what_a_worker_does_not_hold_is_taken_back_at_once(desk: Desk) -> None:
    desk.submit()
    desk.now_ms += 3_000
    desk.held()
    assert desk.job().status is m.JobStatus.QUEUED
    assert not desk.job().lapsed


def test_an_assignment_that_may_have_crossed_the_report_is_sent_again(desk: Desk) -> None:
    desk.submit()
    desk.now_ms += 1_999
    desk.held()
    (again,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert (again.job, again.attempt) == ("K1", 1)
    assert desk.job().status is m.JobStatus.ASSIGNED
    desk.started()
    desk.held()
    assert desk.receivers(topics.ASSIGN) == []


def test_a_report_of_another_boot_says_nothing(desk: Desk) -> None:
    desk.submit()
    desk.now_ms += 3_000
    desk.held(boot="b0")
    assert desk.job().status is m.JobStatus.ASSIGNED


def test_held_attempts_that_nobody_waits_for_are_stopped_or_settled(desk: Desk) -> None:
    desk.held(("K8", 1), finished=(("K9", 2), ("K9", 3)))
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)[0].job == "K8"
    assert len(desk.sent(topics.SETTLED, m.Settled)[0].jobs) == 2


def test_an_outcome_on_its_way_is_not_settled_before_it_came(desk: Desk) -> None:
    desk.submit()
    desk.held(finished=(("K1", 1),))
    assert desk.receivers(topics.SETTLED) == []


def test_a_retryable_failure_waits_and_prefers_another_worker(desk: Desk) -> None:
    desk.submit()
    desk.worker("w2", tok_s=5.0)
    desk.failed()
    assert desk.receivers(topics.ASSIGN) == []
    wait_ms = desk.job().not_before_ms - desk.now_ms
    assert 750 <= wait_ms <= 1_000
    desk.wake()
    assert desk.receivers(topics.ASSIGN) == ["w2"]


def test_a_job_remembers_who_had_it_before_and_why_that_ended(desk: Desk) -> None:
    desk.submit()
    began_ms = desk.now_ms
    desk.worker("w2", tok_s=5.0)
    desk.now_ms += 300
    desk.failed()
    failed_ms = desk.now_ms
    desk.wake()
    desk.presence("w2", status=m.PresenceStatus.OFFLINE)
    lost_ms = desk.now_ms
    desk.restart()
    first, second = desk.job().past
    assert (first.attempt, first.worker, first.code) == (1, "w1", "onnx")
    assert (first.began_at_ms, first.ended_at_ms) == (began_ms, failed_ms)
    assert (second.attempt, second.worker, second.code) == (2, "w2", "worker_lost")
    assert second.ended_at_ms == lost_ms
    assert view_of(desk.job()).past == (first, second)


def test_an_attempt_that_goes_on_after_all_is_not_past(desk: Desk) -> None:
    desk.submit()
    desk.presence(status=m.PresenceStatus.OFFLINE)
    assert [over.code for over in desk.job().past] == ["worker_lost"]
    desk.presence()
    desk.held(("K1", 1))
    assert desk.job().past == ()


def test_of_very_many_attempts_the_latest_are_remembered(desk: Desk) -> None:
    desk.submit()
    job = desk.job()
    for attempt in range(1, 40):
        job = replace(job, attempt=attempt)
        job = replace(job, past=job.past_with("provider_timeout", attempt))
        assert job.past_with("again", attempt) == job.past
    assert [over.attempt for over in job.past] == list(range(24, 40))


def test_a_retry_goes_to_the_same_worker_if_there_is_no_other(desk: Desk) -> None:
    desk.submit()
    desk.failed()
    desk.wake()
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_a_failure_that_no_board_mends_is_a_dead_letter_at_once(desk: Desk) -> None:
    desk.submit()
    desk.failed(retryable=False)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.FAILED, "onnx")
    assert desk.job().dead


def test_attempts_are_bounded_and_the_last_code_is_told() -> None:
    desk = Desk(EngineSettings(retry=RetrySettings(max_attempts=2)))
    desk.worker()
    desk.submit()
    desk.failed(1)
    desk.wake()
    desk.failed(2)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code, result.attempts) == (m.JobStatus.FAILED, "onnx", 2)
    assert "2 attempts" in result.message
    assert desk.job().dead


def test_a_deadline_ends_a_running_job_and_stops_the_worker(desk: Desk) -> None:
    desk.submit(deadline_ms=5_000)
    desk.wake()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.EXPIRED, "deadline")
    assert desk.receivers(topics.WORKER_CANCEL) == ["w1"]
    assert desk.engine.workers()[0].inflight == 0


def test_a_job_past_its_deadline_is_not_given_out(desk: Desk) -> None:
    desk.submit(1)
    desk.submit(2, deadline_ms=1_000)
    desk.now_ms += 1_500
    desk.done()
    assert desk.receivers(topics.ASSIGN) == []
    assert desk.job("K2").status is m.JobStatus.EXPIRED


def test_while_the_link_is_down_nobody_is_held_silent_and_nothing_is_given_out(desk: Desk) -> None:
    desk.submit(1)
    desk.handle(e.LinkLost())
    for _ in range(8):
        desk.wake()
    desk.submit(2)
    assert desk.job("K1").status is m.JobStatus.ASSIGNED
    assert desk.engine.workers()[0].status is m.PresenceStatus.ONLINE
    desk.handle(e.LinkRestored(session_present=False))
    assert desk.sent(topics.ASSIGN, m.Assignment)[0].job == "K1"
    assert desk.job("K1").lease_until_ms == desk.now_ms + 30_000


def test_an_assignment_that_was_sent_again_is_not_missed_in_a_report(desk: Desk) -> None:
    desk.submit()
    desk.now_ms += 5_000
    desk.handle(e.LinkRestored(session_present=True))
    desk.held()
    assert desk.job().status is m.JobStatus.ASSIGNED


def test_a_started_job_is_not_assigned_again_when_the_link_returns(desk: Desk) -> None:
    desk.submit()
    desk.started()
    desk.handle(e.LinkRestored(session_present=False))
    assert desk.receivers(topics.ASSIGN) == []


def test_a_clock_set_back_makes_no_negative_span(desk: Desk) -> None:
    desk.submit()
    desk.now_ms -= 50_000
    desk.done()
    timing = desk.sent(topics.RESULT, m.JobResult)[0].timing_ms
    assert (timing.queued, timing.total) == (0, 0)


def test_recovery_keeps_leases_with_their_holders(desk: Desk) -> None:
    desk.submit(1)
    desk.submit(2)
    desk.now_ms += 25_000
    desk.restart()
    assert desk.job("K1").worker == "w1"
    assert desk.job("K1").lease_until_ms == desk.now_ms + 30_000
    desk.worker()
    assert desk.receivers(topics.ASSIGN) == []
    desk.held(finished=(("K1", 1),))
    desk.done()
    assert desk.job("K1").status is m.JobStatus.OK
    assert desk.sent(topics.ASSIGN, m.Assignment)[0].job == "K2"


def test_recovery_takes_back_what_the_worker_never_got(desk: Desk) -> None:
    desk.submit()
    desk.now_ms += 5_000
    desk.restart()
    desk.worker()
    desk.held()
    assert desk.job().status is m.JobStatus.ASSIGNED, "the lease counts as sent at recovery"
    desk.now_ms += 2_000
    desk.held()
    assert desk.job().status is m.JobStatus.QUEUED


def test_the_overview_counts_who_works_who_is_hot_and_what_all_write(desk: Desk) -> None:
    desk.worker("w2")
    desk.worker("w3")
    state = m.WorkerState(
        ts=1, seq=1, status=m.Activity.HOT, cpu_pct=9.0, mem_pct=9.0, inflight=1, tok_s=2.5
    )
    for name, is_hot in (("w1", False), ("w2", True), ("w3", True)):
        told = replace(state, throttled=is_hot)
        desk.handle(e.StateReceived(worker=m.WorkerId(name), state=told))
    desk.submit()
    now = desk.engine.summary()
    assert (now.busy, now.hot, now.tok_s) == (1, 2, 7.5)
    desk.presence("w3", status=m.PresenceStatus.OFFLINE)
    now = desk.engine.summary()
    assert (now.hot, now.tok_s) == (1, 5.0)
