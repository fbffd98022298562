"""Rates and concurrency, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core.rates import Concurrency, TokenBucket


def test_a_burst_goes_at_once_and_the_rest_in_line() -> None:
    bucket = TokenBucket(10, 10)
    assert [bucket.reserve(0) for _ in range(13)] == [0] * 10 + [100, 200, 300]
    assert bucket.wait_ms(300) == 100
    assert bucket.wait_ms(10_000) == 0


def test_what_is_given_back_is_there_for_the_next() -> None:
    bucket = TokenBucket(10, 1)
    assert [bucket.reserve(0), bucket.reserve(0)] == [0, 100]
    bucket.give_back(1)
    assert bucket.reserve(0) == 100


def test_more_than_the_burst_goes_when_the_bucket_is_full_and_others_wait_for_it() -> None:
    bucket = TokenBucket(100, 1_000)
    assert bucket.reserve(0, 3_000) == 0
    assert bucket.reserve(0, 1) == 20_010


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 20)), min_size=1, max_size=60),
)
def test_no_more_comes_through_than_burst_and_rate_allow(steps: list[tuple[int, int]]) -> None:
    bucket, now_ms, uses = TokenBucket(10, 20), 0, list[tuple[int, int]]()
    for pause_ms, amount in steps:
        now_ms += pause_ms
        uses.append((now_ms + bucket.reserve(now_ms, amount), amount))
    first_ms, last_ms = uses[0][0], max(at_ms for at_ms, _ in uses)
    assert uses == sorted(uses, key=lambda use: use[0])
    assert sum(amount for _, amount in uses) <= 20 + 10 * (last_ms - first_ms + 1) / 1_000 + 1e-6


def test_a_refusal_halves_and_answers_bring_it_back_one_by_one() -> None:
    calls = Concurrency(64)
    calls.shrink(0)
    calls.shrink(999)  # the same moment of trouble
    assert calls.limit == 32
    for _ in range(33):
        calls.grow()
    assert calls.limit == 33
    for now_ms in range(1_000, 20_000, 1_000):
        calls.shrink(now_ms)
    assert calls.limit == 1
    for _ in range(10_000):
        calls.grow()
    assert calls.limit == pytest.approx(64)
