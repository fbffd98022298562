"""Jobs that may wait for the hours in which the cloud costs less."""

from __future__ import annotations

import datetime as dt

import pytest

from cloud_dispatcher.adapters.price_table import load_prices
from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

HOUR_MS = 3_600_000
PEAK_ENDS_MS = 1_000_000 + 2 * HOUR_MS
SPREAD_MS = 60_000


def peak(now_ms: int) -> int:
    return max(now_ms, PEAK_ENDS_MS)


@pytest.fixture
def desk() -> Desk:
    desk = Desk(EngineSettings(deferred_spread_ms=SPREAD_MS), tariff=peak)
    desk.worker()
    return desk


def called(desk: Desk) -> bool:
    return bool(desk.all_of(c.StartCompletion))


def wake_until(desk: Desk, at_ms: int) -> bool:
    """Serve every alarm before that instant; return whether a call was made."""
    while (wake_ms := desk.engine.next_wake_at_ms()) is not None and wake_ms < at_ms:
        desk.wake()
        if called(desk):
            return True
    return False


def test_a_job_that_may_wait_is_asked_after_the_peak(desk: Desk) -> None:
    desk.submit(escalate="always", defer="offpeak")
    assert not called(desk)
    assert desk.job().status is m.JobStatus.ESCALATED
    assert not wake_until(desk, PEAK_ENDS_MS)
    assert wake_until(desk, PEAK_ENDS_MS + SPREAD_MS)
    assert desk.job().attempt == 1
    desk.cloud_finished(1)
    assert desk.sent(topics.RESULT, m.JobResult)[0].answered_by is m.AnsweredBy.CLOUD


def test_a_job_that_may_not_wait_is_asked_at_once(desk: Desk) -> None:
    desk.submit(escalate="always")
    assert called(desk)


def test_a_board_answers_a_deferred_job_at_any_time(desk: Desk) -> None:
    desk.submit(defer="offpeak")
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_an_escalation_waits_and_keeps_what_the_board_said(desk: Desk) -> None:
    desk.submit(defer="offpeak")
    desk.escalated()
    assert not called(desk)
    assert desk.engine.workers()[0].inflight == 0
    desk.cancel()
    assert desk.job().status is m.JobStatus.CANCELLED


def test_a_deadline_before_the_cheaper_hours_goes_first(desk: Desk) -> None:
    desk.submit(escalate="always", defer="offpeak", deadline_ms=2 * HOUR_MS)
    assert called(desk)


def test_off_peak_nobody_waits() -> None:
    desk = Desk()
    desk.submit(escalate="always", defer="offpeak")
    assert called(desk)


def test_what_waited_together_does_not_come_together(desk: Desk) -> None:
    for number in range(1, 30):
        desk.submit(number, escalate="always", defer="offpeak")
    moments = {desk.job(f"K{number}").not_before_ms for number in range(1, 30)}
    assert len(moments) > 20
    assert all(0 <= at_ms - PEAK_ENDS_MS < SPREAD_MS for at_ms in moments)


def test_a_restart_goes_on_waiting(desk: Desk) -> None:
    desk.submit(escalate="always", defer="offpeak")
    before_ms = desk.job().not_before_ms
    desk.restart()
    assert not called(desk)
    assert desk.job().not_before_ms == before_ms
    assert wake_until(desk, PEAK_ENDS_MS + SPREAD_MS)


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("2026-11-23T02:30", "2026-11-23T04:00"),  # a Monday
        ("2026-11-23T09:59", "2026-11-23T10:00"),
        ("2026-11-23T05:30", "2026-11-23T05:30"),
        ("2026-11-22T07:00", "2026-11-22T07:00"),  # a Sunday
    ],
)
def test_the_peak_ends_where_the_price_table_says(at: str, until: str) -> None:
    def ms(text: str) -> int:
        return int(dt.datetime.fromisoformat(f"{text}+00:00").timestamp() * 1_000)

    assert load_prices().offpeak_at_ms("deepseek-flash", at_ms=ms(at)) == ms(until)


def test_a_model_without_a_peak_is_always_cheap() -> None:
    assert load_prices().offpeak_at_ms("own", at_ms=123) == 123
