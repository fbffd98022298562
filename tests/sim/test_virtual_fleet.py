"""The whole fleet in virtual time: 200 boards, 5,000 jobs, the real engine."""

from __future__ import annotations

from cloud_dispatcher.core.policies import RoundRobin, WeightedLeastConnections
from cloud_dispatcher.core.scheduler import Policy
from fleet_protocol.messages import JobStatus
from tests.sim.virtual_fleet import Run, VirtualFleet

BOARDS, JOBS = 200, 5_000
JOBS_PER_S = 85.0
"""About two fifths of what this mixed fleet can answer."""


def played(policy: Policy, *, deaths: int = 0) -> Run:
    fleet = VirtualFleet(boards=BOARDS, policy=policy)
    fleet.submit(jobs=JOBS, jobs_per_s=JOBS_PER_S)
    fleet.kill(boards=deaths, between_ms=(5_000, 40_000))
    return fleet.play()


def assert_each_answered_once(run: Run) -> None:
    assert len(run.results) == JOBS
    assert all(len(results) == 1 for results in run.results.values())
    assert all(results[0].status is JobStatus.OK for results in run.results.values())


def test_every_job_is_answered_and_weights_beat_turns() -> None:
    weighted, turns = played(WeightedLeastConnections()), played(RoundRobin())
    assert_each_answered_once(weighted)
    assert_each_answered_once(turns)
    assert weighted.quantile_ms(0.99) * 2 < turns.quantile_ms(0.99)
    assert weighted.quantile_ms(0.5) < turns.quantile_ms(0.5)


def test_every_job_is_answered_once_while_a_quarter_of_the_boards_die() -> None:
    run = played(WeightedLeastConnections(), deaths=BOARDS // 4)
    assert_each_answered_once(run)
