"""Pauses and bounds of retries."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.retry import (
    GiveUp,
    RetryAt,
    backoff_ms,
    retry_cloud,
    retry_edge,
    spread,
)
from cloud_dispatcher.core.settings import RetrySettings
from fleet_protocol.messages import DeviceId, JobId, JobKey, JobSubmit

SETTINGS = RetrySettings()
JOB = Job(
    key=JobKey("K"),
    device=DeviceId("d"),
    id=JobId("1"),
    submit=JobSubmit(prompt="hello"),
    received_at_ms=0,
    deadline_at_ms=100_000,
    edge_tries=1,
    cloud_tries=1,
)


@pytest.mark.parametrize(("tries", "most_ms"), [(1, 1_000), (2, 2_000), (3, 4_000), (9, 30_000)])
def test_pauses_double_up_to_the_cap_less_at_most_a_quarter(tries: int, most_ms: int) -> None:
    pause_ms = backoff_ms("K", tries, first_ms=1_000, cap_ms=30_000)
    assert most_ms * 3 // 4 <= pause_ms <= most_ms


def test_jitter_is_the_same_for_the_same_name_and_spreads_different_ones() -> None:
    pauses = [spread(f"K{number}", 1_000) for number in range(100)]
    assert pauses == [spread(f"K{number}", 1_000) for number in range(100)]
    assert len(set(pauses)) > 50
    assert all(750 <= pause <= 1_000 for pause in pauses)


def test_a_job_is_retried_until_its_attempts_are_used_up() -> None:
    assert isinstance(retry_edge(JOB, SETTINGS, now_ms=0), RetryAt)
    last = replace(JOB, edge_tries=4)
    decision = retry_edge(last, SETTINGS, now_ms=0)
    assert isinstance(decision, GiveUp)
    assert decision.code == "attempts_exhausted"


def test_a_job_that_no_board_has_tried_may_go_to_one_at_once() -> None:
    assert retry_edge(replace(JOB, edge_tries=0), SETTINGS, now_ms=5) == RetryAt(5)


@pytest.mark.parametrize(
    ("changes", "retry_after_ms", "again"),
    [
        ({}, 2_000, True),
        ({}, None, False),
        ({}, 20_001, False),
        ({"cloud_tries": 3}, 2_000, False),
        ({"deadline_at_ms": 2_000}, 2_000, False),
    ],
    ids=["invited", "not invited", "too long a pause", "enough calls", "deadline first"],
)
def test_the_cloud_is_asked_again_only_where_that_makes_sense(
    changes: dict[str, int], retry_after_ms: int | None, *, again: bool
) -> None:
    job = replace(JOB, **changes)
    decision = retry_cloud(job, SETTINGS, retry_after_ms=retry_after_ms, now_ms=0)
    assert isinstance(decision, RetryAt) is again


def test_a_provider_that_says_at_once_still_gets_a_pause() -> None:
    assert retry_cloud(JOB, SETTINGS, retry_after_ms=0, now_ms=10) == RetryAt(1_010)
