"""Workers that fail again and again are left alone for a while, then tried with one job."""

from __future__ import annotations

from cloud_dispatcher.core.ejection import EjectionSettings, Outliers, Standing
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.events import (
    DoneReceived,
    FailureReceived,
    InfoReceived,
    JobSubmitted,
    PresenceChanged,
    TimePassed,
)
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m

BAD, GOOD = m.WorkerId("bad"), m.WorkerId("good")
SETTINGS = EjectionSettings()


def broken(outliers: Outliers, worker: m.WorkerId, *, times: int = 5, at_ms: int = 0) -> None:
    for _ in range(times):
        outliers.failed(worker, at_ms, present=lambda: 10)


def test_five_errors_in_a_row_and_not_four_leave_a_worker_alone() -> None:
    outliers = Outliers(SETTINGS)
    broken(outliers, BAD, times=4)
    outliers.worked(BAD)
    broken(outliers, BAD, times=4)
    assert outliers.standing(BAD) is Standing.IN
    broken(outliers, BAD, times=1)
    assert outliers.standing(BAD) is Standing.OUT
    assert outliers.sweep_at_ms == 10_000


def test_each_time_lasts_longer_and_ends_at_a_sweep() -> None:
    outliers, now_ms = Outliers(SETTINGS), 0
    broken(outliers, BAD)
    for span_ms in (30_000, 60_000, 90_000):
        ends_ms = now_ms + span_ms
        while now_ms < ends_ms:
            assert outliers.standing(BAD) is Standing.OUT
            assert outliers.sweep_at_ms == now_ms + 10_000
            now_ms += 10_000
            assert outliers.sweep(now_ms) == ([BAD] if now_ms == ends_ms else [])
        assert outliers.standing(BAD) is Standing.PROBING
        outliers.failed(BAD, now_ms, present=lambda: 10)


def test_who_passes_the_probe_is_trusted_and_forgiven_in_time() -> None:
    outliers = Outliers(SETTINGS)
    broken(outliers, BAD)
    for now_ms in (10_000, 20_000, 30_000):
        outliers.sweep(now_ms)
    outliers.worked(BAD)
    assert outliers.standing(BAD) is Standing.IN
    outliers.sweep(40_000)
    assert outliers.sweep_at_ms is None
    assert not outliers._records


def test_never_more_than_the_share_and_always_one_may_be_left_alone() -> None:
    outliers = Outliers(SETTINGS)
    for number in range(10):
        broken(outliers, m.WorkerId(f"w{number}"))
    out = [outliers.standing(m.WorkerId(f"w{n}")) for n in range(10)].count(Standing.OUT)
    assert out == 3
    lone = Outliers(SETTINGS)
    for _ in range(5):
        lone.failed(BAD, 0, present=lambda: 1)
    assert lone.standing(BAD) is Standing.OUT


def test_of_jobs_given_at_one_moment_one_unheard_lease_counts() -> None:
    outliers = Outliers(SETTINGS)
    for given_at_ms in range(5):
        assert outliers.standing(BAD) is Standing.IN
        for _ in range(8):
            outliers.unheard(BAD, 1_000, given_at_ms=given_at_ms, present=lambda: 10)
    assert outliers.standing(BAD) is Standing.OUT


def test_unheard_leases_of_nobody_knows_when_count_each() -> None:
    outliers = Outliers(SETTINGS)
    for _ in range(5):
        outliers.unheard(BAD, 1_000, given_at_ms=None, present=lambda: 10)
    assert outliers.standing(BAD) is Standing.OUT


def test_zero_errors_switch_it_off() -> None:
    outliers = Outliers(EjectionSettings(errors=0))
    broken(outliers, BAD, times=50)
    assert outliers.standing(BAD) is Standing.IN


# ---------------------------------------------------------------- in the engine


class House:
    """An engine with a worker that is quick to fail and one that answers."""

    def __init__(self) -> None:
        self.engine, self.now_ms, self.jobs = Engine(EngineSettings(), "epoch"), 0, 0
        for worker, speed in ((BAD, 87.0), (GOOD, 20.0)):
            online = m.Presence(status=m.PresenceStatus.ONLINE, boot="b")
            model = m.ModelInfo(name="small", version="1", context_tokens=2_048)
            bench = m.Benchmark(decode_tok_s=speed, prefill_tok_s=100.0)
            info = m.WorkerInfo(boot="b", slots=4, models=(model,), benchmark=bench)
            self.engine.handle(PresenceChanged(worker=worker, presence=online), 0)
            self.engine.handle(InfoReceived(worker=worker, info=info), 0)

    def submit(self) -> m.JobKey:
        self.jobs += 1
        key = m.JobKey(f"K{self.jobs}")
        submit = m.JobSubmit(
            prompt="x", cache=m.Caching.OFF, escalate=m.Escalate.NEVER, deadline_ms=9_000
        )
        event = JobSubmitted(
            key=key, device=m.DeviceId("d"), id=m.JobId(key), submit=submit, reply=ReplyTo()
        )
        self.engine.handle(event, self.now_ms)
        return key

    def holder(self, key: m.JobKey) -> str | None:
        job = self.engine.get(key)
        assert job is not None
        return job.worker

    def fail(self, key: m.JobKey, code: str = "local_error") -> None:
        failure = m.JobFailed(attempt=self.attempt(key), code=code)
        event = FailureReceived(worker=BAD, job=key, failure=failure)
        self.engine.handle(event, self.now_ms)

    def answer(self, key: m.JobKey, worker: m.WorkerId) -> None:
        done = m.JobDone(attempt=self.attempt(key), answer=m.LocalAnswer(text="x", model="small"))
        self.engine.handle(DoneReceived(worker=worker, job=key, done=done), self.now_ms)

    def attempt(self, key: m.JobKey) -> int:
        job = self.engine.get(key)
        assert job is not None
        return job.attempt

    def wait(self, until_ms: int) -> None:
        for worker in (BAD, GOOD):  # heard of, so that silence is not what is tested
            online = m.Presence(status=m.PresenceStatus.ONLINE, boot="b")
            self.engine.handle(PresenceChanged(worker=worker, presence=online), self.now_ms)
        while (wake_ms := self.engine.next_wake_at_ms()) is not None and wake_ms <= until_ms:
            self.now_ms = max(self.now_ms, wake_ms)
            self.engine.handle(TimePassed(), self.now_ms)
            online = m.Presence(status=m.PresenceStatus.ONLINE, boot="b")
            for worker in (BAD, GOOD):
                self.engine.handle(PresenceChanged(worker=worker, presence=online), self.now_ms)
        self.now_ms = until_ms

    def left_alone(self) -> dict[str, bool]:
        return {view.worker: view.left_alone for view in self.engine.workers()}


def failing_house() -> House:
    house = House()
    for _ in range(5):
        key = house.submit()
        assert house.holder(key) == BAD
        house.fail(key)
    return house


def test_a_failing_board_gets_no_more_jobs_then_one_then_all() -> None:
    house = failing_house()
    assert house.left_alone() == {BAD: True, GOOD: False}
    assert house.holder(house.submit()) == GOOD
    house.wait(30_000)
    probe = house.submit()
    assert house.holder(probe) == BAD
    assert house.holder(house.submit()) != BAD
    house.answer(probe, BAD)
    assert house.holder(house.submit()) == BAD
    assert house.left_alone() == {BAD: False, GOOD: False}


def test_jobs_given_back_in_good_order_are_no_errors() -> None:
    house = House()
    for _ in range(8):
        key = house.submit()
        assert house.holder(key) == BAD
        house.fail(key, code="draining")
    assert house.left_alone() == {BAD: False, GOOD: False}
