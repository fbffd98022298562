"""How the benchmark of policies makes figures of runs."""

from __future__ import annotations

import pytest

from bench.policies import LIMITS_S, LOADS, Answer, compare, load_within, questions, ratio_of_sums


def test_the_load_is_read_off_where_the_p95_crosses_the_limit() -> None:
    p95s_ms = [1_000.0, 2_000.0, 4_000.0, 16_000.0, 64_000.0]
    assert load_within(p95s_ms, 4_000) == LOADS[2]
    assert load_within(p95s_ms, 8_000) == pytest.approx((LOADS[2] + LOADS[3]) / 2)
    assert load_within(p95s_ms, 999) == LOADS[0]
    assert load_within(p95s_ms, 100_000) == LOADS[-1]


def test_a_first_crossing_counts_even_if_the_p95_falls_again() -> None:
    assert load_within([1_000.0, 9_000.0, 1_000.0, 1_000.0, 1_000.0], 3_000) < LOADS[1]


def test_a_seed_counts_by_what_is_carried_in_it() -> None:
    found = ratio_of_sums([0.9, 0.9, 0.9], [0.6, 0.0, 0.3])
    assert found.mean == pytest.approx(3.0)
    assert found.low < 3.0 < found.high
    same = ratio_of_sums([0.8, 0.4, 0.2], [0.4, 0.2, 0.1])
    assert (same.low, same.mean, same.high) == pytest.approx((2.0, 2.0, 2.0))


def test_policies_that_wait_less_carry_more_and_are_nearer_to_the_oracle() -> None:
    slowness = {"oracle": 1.0, "expected_finish": 1.1, "wlc": 2.0, "round_robin": 8.0}
    answers = {
        question: Answer(
            slowness[question.policy] * question.load * 4_000.0,
            slowness[question.policy] * question.load * 5_000.0,
            (1 / slowness[question.policy],) * len(LIMITS_S),
        )
        for seed in (1, 2, 3)
        for question in questions(seed)
    }
    ours, ratios = compare(answers, (1, 2, 3))
    assert ours["wlc_rough_load_within_10s"] == LOADS[-1]
    assert ratios["wlc_vs_round_robin_rough_within_10s"].mean > 2.0
    assert ratios["wlc_vs_round_robin_done_within_5s"].mean == pytest.approx(4.0)
    assert ratios["expected_finish_p99_vs_oracle_rough_0.6"].mean == pytest.approx(1.1)
