"""What a session does when the board is hot, and when it measures itself again."""

from __future__ import annotations

import pytest

from edge_worker.core import events as e
from edge_worker.core.health import RECOVERY_MS, HostReading
from edge_worker.core.measuring import IDLE_MS, SPEED_LASTS_MS, SPEED_RETRY_MS
from edge_worker.core.rules import SessionRules
from edge_worker.core.session import Session
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.session_lab import COOL, INFO, POLICY, WORKER, SessionLab


def at(temp_c: float) -> e.HostRead:
    return e.HostRead(HostReading(cpu_pct=50.0, mem_pct=20.0, temp_c=temp_c))


def test_a_hot_board_tells_engine_and_fleet_of_fewer_slots_and_later_of_more() -> None:
    lab = SessionLab()
    lab.do(at(81.0))
    assert lab.limits == [1]
    assert [info.slots for info in lab.told(t.INFO)] == [2, 1]
    lab.do(e.HostRead(COOL), after_ms=5_000)
    lab.do(e.HostRead(COOL), after_ms=RECOVERY_MS)
    assert lab.limits == [1, 2]
    assert lab.told(t.INFO)[-1].slots == 2


def with_disk(*, free_mb: int, read_only: bool = False) -> e.HostRead:
    reading = HostReading(
        cpu_pct=50.0, mem_pct=20.0, disk_free_mb=free_mb, disk_read_only=read_only
    )
    return e.HostRead(reading)


def presences(lab: SessionLab) -> list[tuple[str, str | None]]:
    return [(one.status.value, one.reason) for one in lab.told(t.PRESENCE)]


def test_a_board_with_a_full_disk_says_so_takes_no_jobs_and_comes_back() -> None:
    lab = SessionLab()
    before = len(presences(lab))
    for free_mb in (500, 99, 80, 140):
        lab.do(with_disk(free_mb=free_mb), after_ms=5_000)
    # Not yet: a disk that was too full must have half as much again.
    assert presences(lab)[before:] == [("draining", "disk_low")]
    lab.do(with_disk(free_mb=150), after_ms=5_000)
    assert presences(lab)[before:] == [("draining", "disk_low"), ("online", None)]


def test_a_running_job_is_finished_on_a_full_disk() -> None:
    lab = SessionLab()
    lab.start()
    lab.do(with_disk(free_mb=3))
    assert presences(lab)[-1] == ("draining", "disk_low")
    assert lab.told(t.FAILED, "J1") == []
    assert len(lab.engine) == 1


def test_a_read_only_disk_is_told_before_any_job_fails_on_it() -> None:
    lab = SessionLab()
    lab.do(with_disk(free_mb=5_000, read_only=True))
    assert presences(lab)[-1] == ("draining", "disk_read_only")
    lab.do(e.SpoolFailed())
    assert presences(lab)[-1] == ("draining", "disk_read_only")
    lab.do(with_disk(free_mb=5_000))
    assert presences(lab)[-1] == ("draining", "spool_unavailable")
    lab.do(e.SpoolRecovered())
    assert presences(lab)[-1] == ("online", None)


def test_at_the_critical_temperature_jobs_go_to_other_boards() -> None:
    lab = SessionLab()
    lab.do(at(95.0))
    assert presences(lab)[-1] == ("draining", "overheated")
    lab.do(e.HostRead(COOL), after_ms=5_000)
    assert presences(lab)[-1] == ("online", None)


def test_a_board_that_is_drained_by_hand_stays_so_when_its_disk_has_room_again() -> None:
    lab = SessionLab()
    lab.do(with_disk(free_mb=3))
    lab.do(e.CommandReceived(m.WorkerCommand(id="c1", op=m.WorkerOp.DRAIN)))
    lab.do(with_disk(free_mb=5_000), after_ms=5_000)
    assert presences(lab)[-1] == ("draining", None)


def test_what_stays_as_it_is_is_not_told_again() -> None:
    lab = SessionLab()
    told = len(lab.told(t.INFO))
    for _ in range(5):
        lab.do(e.HostRead(COOL), after_ms=5_000)
    assert (lab.limits, len(lab.told(t.INFO))) == ([], told)


def test_at_the_critical_temperature_a_new_job_goes_to_the_cloud() -> None:
    lab = SessionLab()
    lab.do(at(95.0))
    assert lab.limits == [0]
    lab.assign()
    lab.encode_all(7)
    escalation = lab.told(t.ESCALATE, "J1")[0]
    assert (escalation.reason, escalation.prompt_tokens) == (m.Reason.OVERHEATED, 7)
    assert lab.engine == {}


@pytest.mark.parametrize("bound", [{"privacy": m.Privacy.SITE}, {"escalate": m.Escalate.NEVER}])
def test_at_the_critical_temperature_a_job_that_may_not_leave_waits(
    bound: dict[str, object],
) -> None:
    lab = SessionLab()
    lab.do(at(95.0))
    lab.start(**bound)
    assert lab.told(t.ESCALATE, "J1") == []
    assert lab.told(t.FAILED, "J1") == []


def test_what_runs_goes_on_at_the_critical_temperature() -> None:
    lab = SessionLab()
    name = lab.start()
    lab.do(at(95.0))
    assert name in lab.engine


def doubtful() -> SessionLab:
    """A worker whose speed was measured under load."""
    lab = SessionLab(linked=False)
    rules = SessionRules(policy=POLICY, speed_due_at_ms=0)
    lab.session = Session(worker=WORKER, info=INFO, rules=rules, started_at_ms=lab.now_ms)
    lab.link()
    return lab


def speed(*, is_steady: bool) -> e.SpeedMeasured:
    fast = m.Benchmark(decode_tok_s=80.0, prefill_tok_s=300.0)
    return e.SpeedMeasured(speed=fast, is_steady=is_steady)


def test_a_doubtful_speed_is_measured_again_in_an_idle_moment() -> None:
    lab = doubtful()
    lab.run()
    lab.pass_time(2 * IDLE_MS)
    assert lab.timed == 0
    lab.do(e.SettledReceived((m.AttemptRef(job="J1", attempt=1),)))
    lab.pass_time(IDLE_MS)
    assert lab.timed == 0
    lab.pass_time(1_000)
    assert lab.timed == 1


def test_a_new_speed_is_told_and_the_line_stays_as_it_was() -> None:
    lab = doubtful()
    lab.do(e.BandwidthMeasured(12.5))
    lab.do(speed(is_steady=True))
    told = lab.told(t.INFO)[-1].benchmark
    assert (told.decode_tok_s, told.bandwidth_mbps) == (80.0, 12.5)


@pytest.mark.parametrize(
    ("event", "pause_ms"),
    [
        (speed(is_steady=False), SPEED_RETRY_MS),
        (e.SpeedMeasured(speed=None), SPEED_RETRY_MS),
        (speed(is_steady=True), SPEED_LASTS_MS),
    ],
)
def test_a_speed_measured_under_load_is_doubted_within_the_hour(
    event: e.SpeedMeasured, pause_ms: int
) -> None:
    lab = doubtful()
    lab.pass_time(IDLE_MS + 1_000)
    lab.do(event)
    lab.do(e.TimePassed(), after_ms=pause_ms - 1)
    assert lab.timed == 1
    lab.do(e.TimePassed(), after_ms=1)
    assert lab.timed == 2


def test_a_hot_board_does_not_measure_itself() -> None:
    lab = doubtful()
    lab.do(at(91.0))
    lab.pass_time(2 * IDLE_MS)
    assert lab.timed == 0


def test_a_speed_that_is_not_doubted_is_left_alone() -> None:
    lab = SessionLab()
    lab.pass_time(10 * IDLE_MS, step_ms=5_000)
    assert lab.timed == 0
