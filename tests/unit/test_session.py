"""What a worker does about what happens."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core.generation import Broke, Grew
from edge_worker.core.health import HostReading
from edge_worker.core.measuring import BANDWIDTH_EVERY_MS
from edge_worker.core.session import CLOSED_REMEMBERED, HELD_MOST
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.session_lab import COOL, UNSURE, SessionLab, assignment, finished

ROUTINE = {"info", "presence", "held", "state"}


def about_jobs(lab: SessionLab) -> list[str]:
    return [name for name in lab.names() if name not in ROUTINE]


def test_an_assignment_is_on_the_disk_before_started_is_told() -> None:
    lab = SessionLab()
    commands = lab.do(e.AssignmentReceived(assignment()))
    assert [type(command) for command in commands] == [c.KeepJob, c.EncodePrompt]
    assert about_jobs(lab) == []
    lab.pass_time(1_000)
    assert about_jobs(lab) == ["started"]


def test_jobs_that_come_together_are_kept_and_answered_each_for_itself() -> None:
    lab = SessionLab()
    several = assignment("J1", more=(assignment("J2"), assignment("J3", attempt=2)))
    lab.do(e.AssignmentReceived(several))
    assert {key: kept.assignment.more for key, kept in lab.disk.items()} == {
        ("J1", 1): (),
        ("J2", 1): (),
        ("J3", 2): (),
    }
    lab.encode_all()
    for name in list(lab.engine):
        lab.from_engine(finished(name))
    assert about_jobs(lab) == ["done"] * 3
    lab.do(e.AssignmentReceived(several))
    assert about_jobs(lab) == ["done"] * 6, "who is asked again says so again"


@pytest.mark.parametrize("capabilities", [(m.JOINT_ANSWERS,), ()])
def test_an_answer_may_travel_with_others_the_first_time_if_the_dispatcher_can_read_them(
    capabilities: tuple[str, ...],
) -> None:
    lab = SessionLab()
    online = m.DispatcherPresence(
        status=m.DispatcherStatus.ONLINE, epoch="e1", capabilities=capabilities
    )
    lab.do(e.DispatcherSeen(online))
    told = lab.do(finished(lab.start()))
    again = lab.do(e.TimePassed(), after_ms=15_000)
    sends = [
        command
        for command in (*told, *again)
        if isinstance(command, c.Send) and command.channel is t.DONE
    ]
    assert [send.joint for send in sends] == [bool(capabilities), False]


def test_started_is_told_once_though_tokens_were_told_before() -> None:
    lab = SessionLab()
    name = lab.start(stream=True)
    lab.do(Grew(name, "a", 1))
    lab.pass_time(2_000)
    assert about_jobs(lab) == ["worker-tok", "started"]


def test_an_attempt_that_is_quickly_through_tells_its_outcome_alone() -> None:
    lab = SessionLab()
    lab.run()
    lab.pass_time(2_000)
    assert about_jobs(lab) == ["done"]


def test_an_attempt_reported_as_held_is_not_told_started_besides() -> None:
    lab = SessionLab()
    lab.start()
    lab.see_dispatcher("e2")
    lab.pass_time(1_000)
    assert about_jobs(lab) == []


def test_an_answer_is_on_the_disk_before_done_is_told() -> None:
    lab = SessionLab()
    commands = lab.do(finished(lab.start()))
    assert [type(command) for command in commands] == [c.KeepJob, c.Send]
    (done,) = lab.told(t.DONE, "J1")
    assert done.answer.text == "21 C"
    assert done.answer.confidence == pytest.approx(1.0)
    assert done.answer.usage == m.Usage(prompt_tokens=5, completion_tokens=1)


def test_the_same_assignment_again_is_told_started_again_and_not_run_twice() -> None:
    lab = SessionLab()
    lab.start()
    lab.pass_time(500)
    commands = lab.do(e.AssignmentReceived(assignment()))
    assert [type(command) for command in commands] == [c.Send]
    assert about_jobs(lab) == ["started", "started"]


def test_the_same_assignment_after_its_answer_gets_the_answer_again() -> None:
    lab = SessionLab()
    lab.run()
    lab.assign()
    assert about_jobs(lab) == ["done", "done"]
    assert not lab.encoding


def test_a_higher_attempt_replaces_the_older_one() -> None:
    lab = SessionLab()
    old = lab.start(attempt=1)
    new = lab.start(attempt=3)
    assert list(lab.engine) == [new]
    assert list(lab.disk) == [("J1", 3)]
    lab.do(finished(old))
    assert "done" not in lab.names()


def test_a_lower_attempt_is_ignored() -> None:
    lab = SessionLab()
    lab.start(attempt=3)
    assert lab.do(e.AssignmentReceived(assignment(attempt=2))) == []


def test_a_settled_attempt_is_forgotten_and_does_not_start_again() -> None:
    lab = SessionLab()
    lab.run()
    lab.do(e.SettledReceived((m.AttemptRef(job="J1", attempt=1),)))
    assert lab.disk == {}
    assert lab.do(e.AssignmentReceived(assignment())) == []


def test_settling_an_older_attempt_leaves_the_newer_one_alone() -> None:
    lab = SessionLab()
    lab.run(attempt=2)
    lab.do(e.SettledReceived((m.AttemptRef(job="J1", attempt=1),)))
    assert list(lab.disk) == [("J1", 2)]


def test_a_cancelled_attempt_stops_and_never_tells_done() -> None:
    lab = SessionLab()
    name = lab.start()
    commands = lab.do(e.CancelReceived(m.JobKey("J1"), 1))
    assert commands == [c.StopGeneration(name), c.ForgetJob(m.JobKey("J1"), 1)]
    lab.do(finished(name))
    lab.pass_time(1_000)
    assert about_jobs(lab) == []


def test_a_cancel_that_overtakes_its_assignment_still_counts() -> None:
    lab = SessionLab()
    lab.do(e.CancelReceived(m.JobKey("J1"), 1))
    lab.assign()
    assert about_jobs(lab) == []


def test_closed_attempts_are_remembered_within_bounds() -> None:
    lab = SessionLab()
    for number in range(CLOSED_REMEMBERED + 10):
        lab.do(e.CancelReceived(m.JobKey(f"J{number}"), 1))
    lab.assign("J0")
    lab.assign(f"J{CLOSED_REMEMBERED}")
    assert list(lab.disk) == [("J0", 1)]


def test_an_outcome_is_told_again_until_it_is_settled_with_growing_pauses() -> None:
    lab = SessionLab()
    lab.run()
    times = []
    for _ in range(4 * 400):
        before = len(lab.told(t.DONE, "J1"))
        lab.do(e.TimePassed(), after_ms=250)
        if len(lab.told(t.DONE, "J1")) > before:
            times.append(lab.now_ms)
    gaps_s = [round((b - a) / 1_000) for a, b in itertools.pairwise(times)]
    assert gaps_s == [30, 60, 120, 120]


def test_who_assigns_is_there_though_its_presence_was_never_heard() -> None:
    lab = SessionLab(linked=False)
    lab.do(e.LinkRestored())
    lab.do(finished(lab.start()))
    assert lab.measured == 0
    lab.do(e.TimePassed(), after_ms=15_000)
    assert about_jobs(lab).count("done") == 2
    assert lab.measured == 1


def test_an_outcome_is_not_repeated_into_a_void() -> None:
    lab = SessionLab()
    lab.run()
    lab.see_dispatcher("e1", online=False)
    lab.pass_time(60_000)
    assert len(lab.told(t.DONE, "J1")) == 1


def test_a_restored_link_gets_everything_said_again_in_order() -> None:
    lab = SessionLab()
    lab.run("J1")
    lab.start("J2")
    lab.do(e.LinkLost())
    lab.sent.clear()
    lab.do(e.LinkRestored())
    assert lab.names() == ["info", "presence", "held", "done", "presence"]
    # It takes nothing new before it said what it has, or it would be given that once more.
    statuses = [presence.status for presence in lab.told(t.PRESENCE)]
    assert statuses == [m.PresenceStatus.DRAINING, m.PresenceStatus.ONLINE]
    (held,) = lab.told(t.HELD)
    assert held.running == (m.AttemptRef(job="J2", attempt=1),)
    assert held.finished == (m.AttemptRef(job="J1", attempt=1),)


def test_nothing_is_sent_while_the_link_is_down() -> None:
    lab = SessionLab()
    name = lab.start(stream=True)
    lab.do(e.LinkLost())
    lab.sent.clear()
    lab.do(Grew(name, "21", 1))
    lab.do(finished(name))
    lab.do(e.HostRead(COOL))
    lab.pass_time(60_000)
    assert lab.sent == []
    assert lab.disk["J1", 1].outcome is not None


def test_a_new_epoch_of_the_dispatcher_hears_what_is_held_and_the_outcomes() -> None:
    lab = SessionLab()
    lab.run()
    lab.sent.clear()
    lab.see_dispatcher("e1")
    assert lab.sent == []
    lab.see_dispatcher("e2")
    assert lab.names() == ["held", "done"]


def test_after_kill_9_an_attempt_without_outcome_is_generated_again_and_reported_running() -> None:
    lab = SessionLab()
    lab.run("J1")
    lab.start("J2")
    lab.boot()
    lab.sent.clear()
    lab.link()
    assert lab.told(t.HELD)[0].running == (m.AttemptRef(job="J2", attempt=1),)
    assert len(lab.told(t.DONE, "J1")) >= 1
    lab.encode_all()
    (name,) = lab.engine
    lab.from_engine(finished(name))
    assert len(lab.told(t.DONE, "J2")) == 1


def test_an_attempt_that_two_boots_did_not_survive_is_handed_back() -> None:
    lab = SessionLab()
    lab.start()
    lab.boot()
    lab.link()
    lab.encode_all()
    assert len(lab.engine) == 1
    assert lab.told(t.FAILED, "J1") == []
    lab.boot()
    assert (lab.encoding, lab.engine) == ({}, {})
    lab.link()
    failed = lab.told(t.FAILED, "J1")[-1]
    assert (failed.code, failed.retryable) == ("worker_died", True)


@pytest.mark.parametrize("jump_ms", [-56 * 365 * 86_400_000, -3_600_000, 3_600_000])
def test_over_a_restart_whatever_the_clock_says_an_attempt_has_its_span_anew(jump_ms: int) -> None:
    lab = SessionLab()
    lab.start(deadline_ms=5_000)
    lab.now_ms = max(0, lab.now_ms + jump_ms)
    lab.boot()
    lab.link()
    lab.encode_all()
    lab.pass_time(4_500)
    assert len(lab.engine) == 1
    assert lab.told(t.FAILED, "J1") == []
    lab.pass_time(1_000)
    assert lab.told(t.FAILED, "J1")[0].code == "deadline"


def test_of_two_spooled_attempts_of_a_job_the_newer_counts() -> None:
    lab = SessionLab()
    lab.start(attempt=1)
    older = lab.disk["J1", 1]
    lab.start(attempt=2)
    lab.disk["J1", 1] = older
    lab.boot()
    assert list(lab.disk) == [("J1", 2)]
    assert len(lab.encoding) == 1


def test_a_deadline_that_passes_stops_the_generation_for_good() -> None:
    lab = SessionLab()
    lab.start(deadline_ms=2_000)
    lab.pass_time(2_000)
    assert lab.engine == {}
    (failed,) = lab.told(t.FAILED, "J1")
    assert (failed.code, failed.retryable) == ("deadline", False)


@pytest.mark.parametrize(
    ("changes", "tokens", "reason"),
    [
        ({"escalate": m.Escalate.ALWAYS}, 5, m.Reason.REQUESTED),
        ({}, 90, m.Reason.TOO_LONG),
        ({"model": "other"}, 5, m.Reason.UNSUPPORTED),
    ],
)
def test_what_is_not_for_this_worker_is_escalated_with_its_exact_token_count(
    changes: dict[str, object], tokens: int, reason: m.Reason
) -> None:
    lab = SessionLab()
    lab.assign(**changes)
    lab.encode_all(tokens)
    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert (escalation.reason, escalation.prompt_tokens) == (reason, tokens)
    assert escalation.answer is None
    assert lab.engine == {}
    assert lab.disk["J1", 1].outcome == escalation


@pytest.mark.parametrize(
    ("changes", "tokens", "code", "retryable"),
    [({}, 90, "too_long", False), ({"model": "other"}, 5, "unknown_model", True)],
)
def test_what_may_not_leave_and_cannot_be_answered_here_fails_with_a_code(
    *, changes: dict[str, object], tokens: int, code: str, retryable: bool
) -> None:
    lab = SessionLab()
    lab.assign(privacy=m.Privacy.SITE, **changes)
    lab.encode_all(tokens)
    (failed,) = lab.told(t.FAILED, "J1")
    assert (failed.code, failed.retryable) == (code, retryable)


def test_an_uncertain_answer_is_escalated_and_kept() -> None:
    lab = SessionLab()
    lab.from_engine(finished(lab.start(), logprobs=UNSURE))
    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert escalation.reason is m.Reason.LOW_CONFIDENCE
    assert escalation.answer.text == "21 C"
    assert lab.told(t.DONE, "J1") == []


@pytest.mark.parametrize("changes", [{"escalate": m.Escalate.NEVER}, {"privacy": m.Privacy.SITE}])
def test_an_uncertain_answer_that_may_not_leave_is_the_answer(changes: dict[str, object]) -> None:
    lab = SessionLab()
    lab.from_engine(finished(lab.start(**changes), logprobs=UNSURE))
    (done,) = lab.told(t.DONE, "J1")
    assert done.answer.confidence < 0.5


def test_a_broken_generation_is_escalated_with_the_half_it_has() -> None:
    lab = SessionLab()
    name = lab.start()
    lab.do(Grew(name, "21 ", 2))
    lab.from_engine(Broke(name, "engine_error", "x" * 5_000))
    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert escalation.reason is m.Reason.LOCAL_ERROR
    assert escalation.answer.text == "21 "
    assert escalation.answer.finish is m.FinishReason.LENGTH


def test_a_broken_generation_that_may_not_leave_is_for_another_board() -> None:
    lab = SessionLab()
    name = lab.start(escalate=m.Escalate.NEVER)
    lab.from_engine(Broke(name, "e" * 100, "x" * 5_000))
    (failed,) = lab.told(t.FAILED, "J1")
    assert failed.retryable
    assert failed.code == "e" * 64


def test_a_prompt_that_breaks_the_tokenizer_costs_that_job_only() -> None:
    lab = SessionLab()
    lab.assign("J1")
    lab.assign("J2")
    bad = next(name for name in lab.encoding if name.startswith("J1"))
    del lab.encoding[bad]
    lab.from_engine(Broke(bad, "engine_error", "TemplateError"))
    lab.encode_all()
    assert len(lab.told(t.ESCALATE, "J1")) == 1
    assert len(lab.engine) == 1


def test_tokens_are_gathered_for_a_tenth_of_a_second_and_none_is_lost() -> None:
    lab = SessionLab()
    name = lab.start(stream=True)
    for number in range(20):
        lab.do(Grew(name, f"{number} ", number + 1), after_ms=30)
    text = "".join(f"{number} " for number in range(20))
    lab.from_engine(finished(name, text=text))
    chunks = lab.told(t.WORKER_TOKENS, "J1")
    assert [chunk.i for chunk in chunks] == list(range(len(chunks)))
    assert "".join(chunk.t for chunk in chunks) == text
    assert 5 <= len(chunks) <= 8
    assert lab.names()[-1] == "done"


def test_tokens_that_stall_are_sent_by_the_clock() -> None:
    lab = SessionLab()
    name = lab.start(stream=True)
    lab.do(Grew(name, "a", 1))
    lab.do(Grew(name, "b", 2), after_ms=10)
    lab.pass_time(250)
    assert [chunk.t for chunk in lab.told(t.WORKER_TOKENS, "J1")] == ["a", "b"]


def test_a_job_that_does_not_stream_sends_progress_within_a_third_of_its_lease() -> None:
    lab = SessionLab()
    name = lab.start()
    for number in range(40):
        lab.do(Grew(name, "x", number + 1))
        lab.pass_time(250)
    assert [p.tokens for p in lab.told(t.PROGRESS, "J1")] == [13, 25, 37]
    assert lab.told(t.WORKER_TOKENS, "J1") == []


def test_a_job_that_waits_for_a_slot_sends_progress_too() -> None:
    lab = SessionLab()
    lab.assign(stream=True)
    lab.pass_time(7_000)
    assert [p.tokens for p in lab.told(t.PROGRESS, "J1")] == [0, 0]


def test_a_draining_worker_says_so_refuses_and_finishes_what_runs() -> None:
    lab = SessionLab()
    name = lab.start("J1")
    lab.do(e.CommandReceived(m.WorkerCommand(id="c1", op=m.WorkerOp.DRAIN)))
    assert lab.told(t.PRESENCE)[-1].status is m.PresenceStatus.DRAINING
    lab.assign("J2")
    (refusal,) = lab.told(t.FAILED, "J2")
    assert (refusal.code, refusal.retryable) == ("draining", True)
    assert ("J2", 1) not in lab.disk
    lab.from_engine(finished(name))
    assert len(lab.told(t.DONE, "J1")) == 1
    lab.pass_time(60_000)
    assert not lab.stopped


def test_a_resumed_worker_takes_jobs_again() -> None:
    lab = SessionLab()
    for op in (m.WorkerOp.DRAIN, m.WorkerOp.RESUME):
        lab.do(e.CommandReceived(m.WorkerCommand(id="c1", op=op)))
    assert lab.told(t.PRESENCE)[-1].status is m.PresenceStatus.ONLINE
    lab.assign()
    assert list(lab.disk) == [("J1", 1)]


def test_a_stop_waits_for_what_runs_and_for_its_settlement() -> None:
    lab = SessionLab()
    name = lab.start()
    lab.do(e.StopRequested())
    lab.pass_time(5_000)
    assert not lab.stopped
    lab.from_engine(finished(name))
    assert not lab.stopped
    lab.do(e.SettledReceived((m.AttemptRef(job="J1", attempt=1),)))
    assert lab.stopped


def test_a_stop_waits_only_briefly_for_settlement() -> None:
    lab = SessionLab()
    lab.run()
    lab.do(e.StopRequested())
    lab.pass_time(3_000)
    assert lab.stopped
    assert lab.disk["J1", 1].outcome is not None


def test_a_stop_of_an_idle_worker_is_at_once_and_told_once() -> None:
    lab = SessionLab()
    commands = lab.do(e.StopRequested())
    assert commands[-1] == c.StopWorker()
    assert c.StopWorker() not in lab.do(e.TimePassed())


def test_a_stop_that_takes_too_long_hands_the_jobs_back() -> None:
    lab = SessionLab()
    lab.start()
    lab.do(e.StopRequested())
    lab.pass_time(30_000)
    assert lab.stopped
    assert lab.engine == {}
    (failed,) = lab.told(t.FAILED, "J1")
    assert (failed.code, failed.retryable) == ("draining", True)


def test_an_operator_cannot_resume_a_worker_that_stops() -> None:
    lab = SessionLab()
    lab.start()
    lab.do(e.StopRequested())
    lab.do(e.CommandReceived(m.WorkerCommand(id="c1", op=m.WorkerOp.RESUME)))
    assert lab.told(t.PRESENCE)[-1].status is m.PresenceStatus.DRAINING


def test_a_worker_that_cannot_save_says_that_it_takes_no_jobs() -> None:
    lab = SessionLab()
    lab.do(e.SpoolFailed())
    assert lab.told(t.PRESENCE)[-1].status is m.PresenceStatus.DRAINING
    lab.do(e.SpoolRecovered())
    assert lab.told(t.PRESENCE)[-1].status is m.PresenceStatus.ONLINE


def test_a_flood_of_assignments_is_refused_beyond_a_bound() -> None:
    lab = SessionLab()
    for number in range(HELD_MOST + 1):
        lab.assign(f"J{number}")
    assert len(lab.disk) == HELD_MOST
    assert lab.told(t.FAILED, f"J{HELD_MOST}")[0].code == "busy"


def test_the_heartbeat_says_what_the_worker_does() -> None:
    lab = SessionLab()
    lab.do(e.HostRead(COOL))
    name = lab.start()
    lab.do(Grew(name, "x", 10))
    lab.do(e.HostRead(COOL), after_ms=5_000)
    hot = HostReading(cpu_pct=99.0, mem_pct=20.0, temp_c=85.0)
    lab.do(e.HostRead(hot), after_ms=5_000)
    states = lab.told(t.STATE)
    assert [state.status for state in states] == [
        m.Activity.IDLE,
        m.Activity.BUSY,
        m.Activity.HOT,
    ]
    assert [state.seq for state in states] == [0, 1, 2]
    assert [state.tok_s for state in states] == [0.0, 2.0, 0.0]
    assert [state.inflight for state in states] == [0, 1, 1]


def test_bandwidth_is_measured_once_the_dispatcher_is_there_and_every_six_hours() -> None:
    lab = SessionLab(linked=False)
    lab.do(e.LinkRestored())
    assert lab.measured == 0
    lab.see_dispatcher("e1")
    assert lab.measured == 1
    lab.do(e.BandwidthMeasured(12.5))
    assert lab.told(t.INFO)[-1].benchmark.bandwidth_mbps == 12.5
    lab.pass_time(BANDWIDTH_EVERY_MS - 10_000, step_ms=10_000)
    assert lab.measured == 1
    lab.pass_time(20_000, step_ms=10_000)
    assert lab.measured == 2


def test_bandwidth_that_could_not_be_measured_is_tried_again_soon() -> None:
    lab = SessionLab()
    lab.do(e.BandwidthMeasured(None))
    lab.pass_time(60_000, step_ms=1_000)
    assert lab.measured == 2


def test_a_line_too_slow_for_a_probe_is_burdened_ever_more_rarely() -> None:
    lab = SessionLab()
    for _ in range(4 * 60):
        before = lab.measured
        lab.pass_time(60_000, step_ms=10_000)
        if lab.measured > before:
            lab.do(e.BandwidthMeasured(None))
    assert 8 <= lab.measured <= 10
    lab.do(e.BandwidthMeasured(9.0))
    lab.pass_time(BANDWIDTH_EVERY_MS, step_ms=10_000)
    lab.do(e.BandwidthMeasured(None))
    before = lab.measured
    lab.pass_time(60_000, step_ms=10_000)
    assert lab.measured == before + 1


def test_a_reload_drains_and_ends_to_be_started_again() -> None:
    lab = SessionLab()
    name = lab.start()
    lab.sent.clear()
    reload = e.CommandReceived(m.WorkerCommand(id="c1", op=m.WorkerOp.RELOAD))
    lab.do(reload)
    assert lab.told(t.PRESENCE)[-1].status is m.PresenceStatus.DRAINING
    lab.from_engine(finished(name))
    commands = lab.do(e.SettledReceived((m.AttemptRef(job="J1", attempt=1),)))
    assert commands[-1] == c.StopWorker(again=True)


@pytest.mark.parametrize("first", ["reload", "stop"])
def test_who_is_stopped_is_not_started_again_whatever_else_is_wanted(first: str) -> None:
    lab = SessionLab()
    name = lab.start()
    wanted = [e.CommandReceived(m.WorkerCommand(id="c1", op=m.WorkerOp.RELOAD)), e.StopRequested()]
    for event in wanted if first == "reload" else reversed(wanted):
        lab.do(event)
    lab.from_engine(finished(name))
    commands = lab.do(e.SettledReceived((m.AttemptRef(job="J1", attempt=1),)))
    assert commands[-1] == c.StopWorker(again=False)


def test_a_worker_asked_to_report_says_everything_again_and_measures_nothing() -> None:
    lab = SessionLab()
    lab.start()
    lab.sent.clear()
    lab.do(e.CommandReceived(m.WorkerCommand(id="c1", op=m.WorkerOp.REPORT)))
    assert lab.names() == ["info", "presence", "held", "presence"]
    assert lab.told(t.HELD)[0].running == (m.AttemptRef(job="J1", attempt=1),)
    assert lab.measured == 1


def test_the_repr_shows_the_state_and_no_prompt() -> None:
    lab = SessionLab()
    lab.start()
    assert repr(lab.session) == "Session(held=1, running=1, linked=True, draining=False)"


def test_priorities_and_generation_reach_the_engine_as_they_were_given() -> None:
    lab = SessionLab()
    wanted = m.Generation(max_tokens=7, temperature=0.5, seed=3, stop=("\n",))
    name = lab.start(priority=9, generation=wanted)
    request = lab.engine[name]
    assert (request.priority, request.generation) == (9, wanted)
    assert request.prompt_tokens == tuple(range(5))
    assert msgspec.structs.asdict(request)["id"] == name
