"""Who gets the next job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import (
    FreeWorkers,
    Rank,
    RoundRobin,
    WeightedLeastConnections,
    WorkerLoad,
)
from fleet_protocol.messages import WorkerId

ANY = Need(None, 0)
POLICY = WeightedLeastConnections()


def filed(**ranks: Rank) -> FreeWorkers:
    free = FreeWorkers()
    for name, rank in ranks.items():
        free.file(WorkerId(name), rank, lambda _: True)
    return free


def test_an_idle_heavy_worker_comes_before_an_idle_light_one() -> None:
    heavy, light = WorkerLoad(1.0, 0, 0), WorkerLoad(0.3, 0, 0)
    assert POLICY.rank(heavy) < POLICY.rank(light)


def test_a_heavy_worker_is_preferred_until_its_load_exceeds_the_lighter_one() -> None:
    light = POLICY.rank(WorkerLoad(0.3, 0, 0))
    assert POLICY.rank(WorkerLoad(1.0, 2, 0)) < light
    assert POLICY.rank(WorkerLoad(1.0, 3, 0)) > light


def test_ties_go_to_the_heavier_then_to_the_first_id() -> None:
    even = POLICY.rank(WorkerLoad(0.5, 0, 0))
    heavier = POLICY.rank(WorkerLoad(1.0, 1, 0))
    assert even[0] == heavier[0]
    assert filed(a=even, b=heavier).pick_worker(ANY) == "b"
    assert filed(b=even, a=even).pick_worker(ANY) == "a"


def test_round_robin_takes_the_one_that_waited_longest() -> None:
    policy = RoundRobin()
    assert policy.rank(WorkerLoad(0.1, 9, 1)) < policy.rank(WorkerLoad(1.0, 0, 2))


def test_nobody_free_means_nobody() -> None:
    assert FreeWorkers().pick_worker(ANY) is None


def test_a_worker_is_avoided_only_while_there_is_another() -> None:
    free = filed(a=(1.0,), b=(2.0,))
    assert free.pick_worker(ANY, avoid=WorkerId("a")) == "b"
    assert free.pick_worker(ANY) == "a"
    free.strike(WorkerId("b"))
    assert free.pick_worker(ANY, avoid=WorkerId("a")) == "a"


def test_a_worker_is_picked_only_for_needs_that_it_serves() -> None:
    free = FreeWorkers()
    free.file(WorkerId("a"), (1.0,), lambda need: need.tokens <= 512)
    assert free.pick_worker(Need(None, 512)) == "a"
    assert free.pick_worker(Need(None, 1_024)) is None


def test_there_are_never_more_heaps_than_a_bound() -> None:
    free = filed(a=(1.0,))
    for number in range(1_000):
        assert free.pick_worker(Need(f"model{number}", 0)) == "a"
    assert len(free._heaps) <= 64


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5) | st.none()), max_size=200),
    st.sampled_from([None, *"abcde"]),
)
def test_the_pick_is_always_that_of_a_plain_search(
    changes: list[tuple[str, int | None]], avoid: str | None
) -> None:
    free, ranks = FreeWorkers(), dict[str, int]()
    for name, rank in changes:
        if rank is None:
            free.strike(WorkerId(name))
            ranks.pop(name, None)
        else:
            free.file(WorkerId(name), (rank,), lambda _: True)
            ranks[name] = rank
        others = {key: value for key, value in ranks.items() if key != avoid} or ranks
        expected = min(others, key=lambda key: (others[key], key)) if others else None
        assert free.pick_worker(ANY, avoid=WorkerId(avoid) if avoid else None) == expected


@pytest.mark.parametrize("inflight", [0, 1, 7])
def test_the_formula_is_inflight_plus_one_over_weight(inflight: int) -> None:
    assert POLICY.rank(WorkerLoad(0.25, inflight, 0))[0] == (inflight + 1) / 0.25
