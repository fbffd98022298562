"""Workers that the dispatcher cannot take at their word: unknown, forgotten, lying."""

from __future__ import annotations

import msgspec
import pytest

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.codec import decode, encode
from fleet_protocol.errors import ProtocolError
from tests.unit.engine_desk import ANSWER, Desk

LIAR = m.WorkerId("liar")


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker()
    return desk


def beat(desk: Desk, worker: str = "w1", *, inflight: int = 0, after_ms: int = 0) -> None:
    state = m.WorkerState(
        ts=0, seq=0, status=m.Activity.IDLE, cpu_pct=0, mem_pct=0, inflight=inflight
    )
    desk.handle(e.StateReceived(worker=m.WorkerId(worker), state=state), after_ms=after_ms)


def asked(desk: Desk) -> list[m.WorkerOp]:
    return [command.op for command in desk.sent(topics.COMMAND, m.WorkerCommand)]


# ------------------------------------------------------------ whom nobody introduced


def test_a_worker_that_beats_and_is_not_known_is_asked_to_report_and_asked_again() -> None:
    desk = Desk()
    heard = []
    for _ in range(5):
        beat(desk, "strange", after_ms=5_000)
        heard.append(asked(desk))
    assert heard == [[], [], [m.WorkerOp.REPORT], [], [m.WorkerOp.REPORT]]
    assert desk.receivers(topics.COMMAND) == ["strange"]


def test_a_worker_whose_abilities_got_lost_is_asked_too() -> None:
    desk = Desk()
    desk.presence()
    for _ in range(2):
        beat(desk, after_ms=9_000)
    assert asked(desk) == []
    beat(desk, after_ms=1_000)
    assert asked(desk) == [m.WorkerOp.REPORT]


def test_a_worker_that_is_known_is_left_in_peace(desk: Desk) -> None:
    for _ in range(10):
        beat(desk, after_ms=5_000)
        assert asked(desk) == []


def test_a_will_that_came_late_puts_a_worker_out_for_seconds_only(desk: Desk) -> None:
    desk.presence(status=m.PresenceStatus.OFFLINE)
    desk.submit()
    for _ in range(3):
        assert desk.receivers(topics.ASSIGN) == []
        beat(desk, after_ms=5_000)
    assert asked(desk) == [m.WorkerOp.REPORT]
    desk.presence()
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_the_last_heartbeat_of_a_worker_that_left_asks_for_nothing(desk: Desk) -> None:
    desk.presence(status=m.PresenceStatus.OFFLINE)
    beat(desk, after_ms=100)
    assert asked(desk) == []
    desk.now_ms += 3_600_000
    desk.presence()
    beat(desk)
    assert asked(desk) == []


# ------------------------------------------------------------ who lies


@pytest.mark.parametrize("inflight", [0, 1, 10**9])
def test_what_a_worker_says_that_it_holds_decides_nothing(desk: Desk, inflight: int) -> None:
    desk.worker("w2", tok_s=80.0)
    beat(desk, "w1", inflight=inflight)
    given = []
    for number in (1, 2, 3):
        desk.submit(number)
        given += desk.receivers(topics.ASSIGN)
    assert given == ["w1", "w2"], "one slot each, the heavier first, by the dispatcher's own count"


def test_a_claim_to_somebody_elses_job_moves_nothing_and_is_called_off(desk: Desk) -> None:
    desk.submit()
    before = desk.job()
    desk.worker("liar")
    key, chunk = m.JobKey("K1"), m.WorkerTokenChunk(attempt=1, i=0, t="lies")
    desk.started(1, "liar")
    assert desk.receivers(topics.WORKER_CANCEL) == ["liar"]
    desk.handle(e.ProgressReceived(worker=LIAR, job=key, attempt=1))
    desk.handle(e.TokensReceived(worker=LIAR, job=key, chunk=chunk))
    assert desk.receivers(topics.TOKENS) == []
    desk.done(1, "liar")
    assert desk.receivers(topics.SETTLED) == ["liar"]
    desk.failed(1, "liar", retryable=False)
    said = m.Escalation(attempt=1, reason=m.Reason.COMPLEX, answer=ANSWER)
    desk.handle(e.EscalationReceived(worker=LIAR, job=key, escalation=said))
    held = m.HeldJobs(boot="b1", running=(m.AttemptRef(job="K1", attempt=1),))
    desk.handle(e.HeldReceived(worker=LIAR, held=held), after_ms=1_000)
    assert desk.receivers(topics.WORKER_CANCEL) == ["liar"]
    assert desk.job() == before
    desk.done()
    assert desk.job().status is m.JobStatus.OK


def test_an_attempt_that_is_still_to_come_cannot_be_claimed(desk: Desk) -> None:
    desk.submit()
    desk.done(2)
    assert desk.job().status is m.JobStatus.ASSIGNED
    desk.started(7)
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)[0].attempt == 7
    assert desk.job().attempt == 1


def test_who_claims_more_slots_than_the_protocol_knows_is_not_even_read() -> None:
    info = m.WorkerInfo(boot="b1", slots=256, prefetch=256)
    decode(topics.INFO, encode(info))
    with pytest.raises(ProtocolError):
        decode(topics.INFO, encode(msgspec.structs.replace(info, slots=257)))


@pytest.mark.parametrize("tok_s", [5e-324, 1e-300, 1e9])
def test_whatever_a_worker_says_of_its_speed_it_has_a_weight(desk: Desk, tok_s: float) -> None:
    for said in (tok_s, tok_s, 80.0):
        desk.worker("liar", tok_s=said)
        desk.submit()
        desk.done(1, "liar")
    (liar,) = (worker for worker in desk.engine.workers() if worker.worker == "liar")
    assert 0.0 < liar.weight <= 1.0


def test_who_takes_jobs_and_never_answers_is_left_alone_and_loses_none() -> None:
    desk = Desk(EngineSettings(lease_ms=2_000))
    desk.worker("liar", slots=256)
    for number in range(1, 21):
        desk.now_ms += 1
        desk.submit(number)
    assert desk.engine.summary().inflight == 20
    desk.worker("w1", slots=20)
    answered: set[str] = set()
    for _ in range(400):
        for command in desk.sent(topics.ASSIGN, m.Assignment):
            if desk.job(command.job).worker == "w1":
                answered.add(command.job)
        for key in sorted(answered):
            if desk.job(key).is_open and desk.job(key).worker == "w1":
                desk.done(desk.job(key).attempt, "w1", key)
        if len(answered) == 20:
            break
        beat(desk, "liar")
        beat(desk, "w1")
        desk.wake()
    assert len(answered) == 20
    assert {desk.job(f"K{n}").status for n in range(1, 21)} == {m.JobStatus.OK}
    (liar,) = (worker for worker in desk.engine.workers() if worker.worker == "liar")
    assert liar.left_alone


def test_who_says_for_ever_that_it_works_is_believed_until_the_deadline(desk: Desk) -> None:
    desk.submit(deadline_ms=60_000)
    for _ in range(6):
        assert desk.job().status in {m.JobStatus.ASSIGNED, m.JobStatus.RUNNING}
        desk.now_ms += 9_999
        desk.started()
    desk.wake()
    assert desk.job().status is m.JobStatus.EXPIRED
    assert desk.receivers(topics.WORKER_CANCEL) == ["w1"]


def test_a_failure_that_is_told_again_and_again_counts_once(desk: Desk) -> None:
    desk.submit()
    for _ in range(9):
        desk.failed()
    desk.wake()
    assert desk.job().attempt == 2
    assert not desk.engine.workers()[0].left_alone


def test_what_nobody_asked_for_makes_nobody_trusted() -> None:
    desk = Desk(EngineSettings(lease_ms=2_000))
    desk.worker("liar", slots=5)
    for number in range(1, 6):
        desk.submit(number)
    for _ in range(40):
        beat(desk, "liar")
        desk.done(1, "liar", "K99")
        said = m.Escalation(attempt=9, reason=m.Reason.COMPLEX, answer=ANSWER)
        desk.handle(e.EscalationReceived(worker=LIAR, job=m.JobKey("K1"), escalation=said))
        desk.wake()
        if desk.engine.workers()[0].left_alone:
            break
    assert desk.engine.workers()[0].left_alone
