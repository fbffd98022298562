"""The simulator's worlds: the real engine keeps its promises there, and runs can be compared."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core.policies import PolicyName, policy_of
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.simulation.figures import figures_of
from cloud_dispatcher.simulation.scenario import Arrivals, Faults, Scenario, Spells
from cloud_dispatcher.simulation.world import Outcome, World

OFTEN = Spells(share=1.0, every_s=20.0, span_s=8.0)
ROUGH = Faults(
    throttling=OFTEN, board_loss=OFTEN, link_loss=OFTEN, stale_share=0.5, wrong_share=0.5
)
BOARDS = {"pi4": 6, "pi5": 4, "jetson": 2}


def played(scenario: Scenario, policy: PolicyName = PolicyName.WLC, seed: int = 1) -> Outcome:
    return World(scenario, seed).play(policy_of(policy, EngineSettings()))


@pytest.mark.parametrize("policy", list(PolicyName))
def test_every_job_ends_once_however_rough_it_is(policy: PolicyName) -> None:
    arrivals = Arrivals(jobs=1_000, load=0.5, deadline_s=60.0)
    outcome = played(Scenario(boards=BOARDS, arrivals=arrivals, faults=ROUGH), policy)
    assert [ending.number for ending in outcome.endings] == list(range(1_000))
    assert any(ending.attempts > 1 for ending in outcome.endings)
    assert sum(ending.in_time for ending in outcome.endings) > 900
    assert 0.0 < outcome.busy < 1.0


def test_the_same_seed_plays_the_same_run_and_another_one_another() -> None:
    scenario = Scenario(boards=BOARDS, arrivals=Arrivals(jobs=300))
    assert played(scenario).endings == played(scenario).endings
    assert played(scenario).endings != played(scenario, seed=2).endings


def test_every_policy_meets_the_same_jobs_and_the_same_boards() -> None:
    scenario = Scenario(boards=BOARDS, arrivals=Arrivals(jobs=300))
    first, second = World(scenario, 7), World(scenario, 7)
    first.play(policy_of(PolicyName.WLC, scenario.engine))
    assert first.demands == second.demands
    claims = [[board.claim for board in world.boards.values()] for world in (first, second)]
    assert claims[0] == claims[1]


def test_an_overloaded_fleet_answers_what_it_can_and_ends_the_rest() -> None:
    arrivals = Arrivals(jobs=2_000, load=2.0, deadline_s=5.0)
    figures = figures_of(played(Scenario(boards=BOARDS, arrivals=arrivals)), warm_up=0.1)
    assert figures.busy > 0.8
    assert 0.2 < figures.in_time < 0.8


def test_weights_answer_sooner_than_turns_on_unequal_boards() -> None:
    scenario = Scenario(boards=BOARDS, arrivals=Arrivals(jobs=1_000, load=0.6))
    wlc, turns = (
        figures_of(played(scenario, policy), warm_up=0.1)
        for policy in (PolicyName.WLC, PolicyName.ROUND_ROBIN)
    )
    assert wlc.p95_ms * 2 < turns.p95_ms
    assert wlc.in_time >= turns.in_time
