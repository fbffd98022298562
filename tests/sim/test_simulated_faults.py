"""What goes wrong in a simulated world shows, and what the engine does against it helps."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from cloud_dispatcher.core.ejection import EjectionSettings
from cloud_dispatcher.core.policies import PolicyName, SchedulingSettings, policy_of
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.simulation.figures import Figures, figures_of
from cloud_dispatcher.simulation.scenario import Arrivals, Faults, Scenario, Spells
from cloud_dispatcher.simulation.world import Outcome, World

CALM: dict[str, Any] = {
    "throttling": Spells(),
    "board_loss": Spells(),
    "link_loss": Spells(),
    "stale_share": 0.0,
    "wrong_share": 0.0,
}
ALIKE = {"pi5": 6}
UNEQUAL = {"pi4": 5, "pi5": 3, "jetson": 2}
SOON_FOR_GOOD = Spells(share=1.0, every_s=1.0, span_s=10_000.0)
WLC, FINISH = PolicyName.WLC, PolicyName.EXPECTED_FINISH


def play(
    *,
    boards: dict[str, int],
    policy: PolicyName = WLC,
    load: float = 0.4,
    seed: int = 1,
    strain_most: float = 4.0,
    ejection: EjectionSettings = EjectionSettings(),  # noqa: B008 - frozen
    **faults: Any,
) -> Outcome:
    """Play 600 jobs that nobody gives up too soon."""
    scenario = Scenario(
        boards=boards,
        arrivals=Arrivals(jobs=600, load=load, deadline_s=120.0),
        faults=Faults(**{**CALM, **faults}),
        engine=EngineSettings(ejection=ejection),
    )
    settings = SchedulingSettings(policy=policy, strain_most=strain_most)
    return World(scenario, seed).play(policy_of(settings))


def figures(**how: Any) -> Figures:
    return figures_of(play(**how), warm_up=0.2)


def p95_ms(**how: Any) -> float:
    """Return the mean p95 of a few seeds."""
    return statistics.fmean(figures(seed=seed, **how).p95_ms for seed in range(1, 4))


def test_nothing_goes_wrong_in_a_calm_world() -> None:
    calm = figures(boards=ALIKE)
    assert (calm.attempts, calm.in_time) == (1.0, 1.0)


def test_throttled_boards_take_longer_and_are_busier() -> None:
    calm = figures(boards=ALIKE)
    hot = figures(boards=ALIKE, throttling=SOON_FOR_GOOD, throttled_to=0.5)
    assert hot.p50_ms > 1.8 * calm.p50_ms
    assert hot.busy > 1.5 * calm.busy


def test_a_board_without_power_costs_further_attempts_and_no_answer() -> None:
    dark = figures(boards=ALIKE, board_loss=Spells(share=1.0, every_s=30.0, span_s=15.0))
    assert dark.attempts > 1.02
    assert dark.p99_ms > 15_000
    assert dark.in_time == 1.0


def test_what_a_short_loss_of_the_link_keeps_back_comes_late_but_is_not_done_twice() -> None:
    calm = figures(boards=ALIKE)
    cut = figures(boards=ALIKE, link_loss=Spells(share=1.0, every_s=20.0, span_s=2.0))
    assert cut.p99_ms > 2 * calm.p99_ms
    assert cut.attempts < 1.02
    assert cut.in_time == 1.0


def test_what_a_long_loss_of_the_link_keeps_back_is_done_by_another_board() -> None:
    cut = figures(boards=ALIKE, link_loss=Spells(share=0.5, every_s=30.0, span_s=90.0))
    assert cut.attempts > 1.02
    assert cut.p99_ms > 15_000
    assert cut.in_time == 1.0


def test_stale_heartbeats_mislead_nobody_who_counts_himself() -> None:
    """`wlc` goes by the dispatcher's own count; who learns the pace of hot boards goes by both."""
    hot: dict[str, Any] = {
        "boards": UNEQUAL,
        "throttling": Spells(share=0.5, every_s=20.0, span_s=20.0),
    }
    for policy, is_misled in ((WLC, False), (FINISH, True)):
        fresh = play(policy=policy, stale_share=0.0, **hot)
        stale = play(policy=policy, stale_share=1.0, stale_s=60.0, **hot)
        assert (fresh.endings != stale.endings) is is_misled


def test_wrong_weights_cost_time_and_what_answers_take_corrects_them() -> None:
    lies: dict[str, Any] = {"wrong_share": 0.5, "wrong_factor": 4.0}
    honest = p95_ms(boards=UNEQUAL, strain_most=1.0)
    believed = p95_ms(boards=UNEQUAL, strain_most=1.0, **lies)
    corrected = p95_ms(boards=UNEQUAL, **lies)
    learned = p95_ms(boards=UNEQUAL, policy=FINISH, **lies)
    assert believed > 1.3 * honest
    assert corrected < 1.1 * honest
    assert learned < honest


@pytest.mark.parametrize("policy", list(PolicyName))
def test_a_board_that_fails_everything_is_left_alone(policy: PolicyName) -> None:
    """It is always idle, so whoever sends jobs where little is held sends it all of them."""
    once = Spells(share=0.2, every_s=5.0, span_s=10_000.0)
    broken: dict[str, Any] = {"boards": ALIKE, "policy": policy, "failing": once}
    trusted = figures(ejection=EjectionSettings(errors=0), **broken)
    left_alone = figures(**broken)
    assert trusted.attempts > 1.15
    assert left_alone.attempts < 1.02
    assert left_alone.p50_ms < 0.9 * trusted.p50_ms
    assert left_alone.p95_ms < 0.9 * trusted.p95_ms
