"""The breaker's rules, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core.breaker import Breaker, BreakerSettings, BreakerState

SETTINGS = BreakerSettings(open_ms=30_000, open_cap_ms=600_000)


def fail(breaker: Breaker, now_ms: int, *, times: int = 1) -> None:
    for _ in range(times):
        breaker.fail(breaker.begin(now_ms), now_ms, "down")


def succeed(breaker: Breaker, now_ms: int, *, times: int = 1) -> None:
    for _ in range(times):
        breaker.succeed(breaker.begin(now_ms), now_ms)


def opened(now_ms: int = 0) -> Breaker:
    breaker = Breaker(SETTINGS)
    fail(breaker, now_ms, times=5)
    return breaker


def test_five_failures_in_a_row_open_it_for_a_while() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0, times=4)
    assert breaker.ready_at_ms(0) == 0
    fail(breaker, 0)
    assert (breaker.state, breaker.reason) == (BreakerState.OPEN, "down")
    assert breaker.ready_at_ms(1) == 30_000


def test_a_success_in_between_starts_the_row_over() -> None:
    breaker = Breaker(BreakerSettings(window_calls=1_000))
    for _ in range(20):
        fail(breaker, 0, times=4)
        succeed(breaker, 0)
    assert breaker.state is BreakerState.CLOSED


def test_more_failures_than_successes_within_ten_seconds_open_it() -> None:
    breaker = Breaker(BreakerSettings(failures=100))
    succeed(breaker, 0, times=5)
    fail(breaker, 1, times=5)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 2)
    assert breaker.state is BreakerState.OPEN


def test_what_is_older_than_the_window_does_not_count() -> None:
    breaker = Breaker(BreakerSettings(failures=100))
    fail(breaker, 0, times=9)
    fail(breaker, 10_000, times=9)
    assert breaker.state is BreakerState.CLOSED


def test_after_the_pause_one_call_at_a_time_finds_out() -> None:
    breaker = opened()
    probe = breaker.begin(30_000)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.ready_at_ms(30_000) > 30_000
    breaker.succeed(probe, 30_100)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.ready_at_ms(30_100) == 30_100


def test_a_probe_that_says_nothing_leaves_room_for_another() -> None:
    breaker = opened()
    breaker.abandon(breaker.begin(30_000))
    assert breaker.ready_at_ms(30_001) == 30_001
    assert breaker.state is BreakerState.HALF_OPEN


@pytest.mark.parametrize(
    ("took_ms", "pause_ms"),
    [(0, 250), (20, 250), (60, 600), (400, 4_000), (501, 5_000), (60_000, 5_000)],
)
def test_a_pause_is_ten_times_as_long_as_the_failure_within_its_bounds(
    took_ms: int, pause_ms: int
) -> None:
    breaker = Breaker(BreakerSettings())
    for _ in range(5):
        breaker.fail(breaker.begin(0), took_ms, "down", took_ms=took_ms)
    assert breaker.ready_at_ms(took_ms) == took_ms + pause_ms
    probe = breaker.begin(90_000)
    breaker.fail(probe, 90_010, "down", took_ms=10)
    assert breaker.ready_at_ms(90_010) == 90_010 + 250


def test_calls_from_before_a_change_change_nothing() -> None:
    breaker = Breaker(SETTINGS)
    late = [breaker.begin(0) for _ in range(4)]
    fail(breaker, 0, times=5)
    breaker.succeed(late[0], 1)
    assert breaker.state is BreakerState.OPEN
    breaker.begin(30_000)
    breaker.fail(late[1], 30_001, "down")
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.succeed(late[3], 30_001)
    assert breaker.state is BreakerState.HALF_OPEN, "only the probe finds out"
    breaker.abandon(late[2])
    assert breaker.ready_at_ms(30_002) > 30_002


def test_a_trip_opens_at_once_and_for_as_long_as_it_says() -> None:
    breaker = Breaker(SETTINGS)
    breaker.trip(0, "no_balance", for_ms=300_000)
    assert breaker.ready_at_ms(0) == 300_000
    breaker.trip(200_000, "no_balance", for_ms=300_000)
    assert breaker.ready_at_ms(200_000) == 500_000
    breaker.close()
    assert breaker.ready_at_ms(200_001) == 200_001


@given(st.lists(st.tuples(st.integers(0, 40_000), st.sampled_from(["ok", "bad", "none"]))))
def test_whatever_happens_it_lets_a_call_through_within_its_cap(
    steps: list[tuple[int, str]],
) -> None:
    breaker, now_ms = Breaker(SETTINGS), 0
    for pause_ms, outcome in steps:
        now_ms += pause_ms
        ready_ms = breaker.ready_at_ms(now_ms)
        assert now_ms <= ready_ms <= now_ms + SETTINGS.open_cap_ms
        if ready_ms > now_ms:
            continue
        ticket = breaker.begin(now_ms)
        if outcome == "ok":
            breaker.succeed(ticket, now_ms)
        elif outcome == "bad":
            breaker.fail(ticket, now_ms, "down")
        else:
            breaker.abandon(ticket)
