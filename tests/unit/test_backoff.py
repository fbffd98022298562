"""Waits between tries: doubling, capped, jittered."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.backoff import Backoff


@given(st.integers(), st.floats(0.001, 10), st.floats(0.001, 100))
def test_no_wait_exceeds_its_bound_or_the_cap(seed: int, first_s: float, cap_s: float) -> None:
    backoff = Backoff(first_s=first_s, cap_s=cap_s, rng=random.Random(seed))
    for tries in range(60):
        assert 0.0 <= backoff.next_s() <= min(cap_s, first_s * 2.0**tries)


def test_a_fleet_that_lost_its_broker_does_not_return_as_one() -> None:
    waits = [Backoff(first_s=1.0, cap_s=30.0).next_s() for _ in range(1_000)]
    assert len(set(waits)) > 990
    assert sum(wait < 0.5 for wait in waits) > 300


def test_after_a_success_the_waits_are_short_again() -> None:
    backoff = Backoff(first_s=1.0, cap_s=1_000.0, rng=random.Random(1))
    for _ in range(10):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_a_million_tries_do_not_overflow() -> None:
    backoff = Backoff(first_s=1.0, cap_s=30.0)
    backoff._tries = 1_000_000
    assert backoff.next_s() <= 30.0
