"""Workers, their weights and what they hold."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core.fleet import Fleet, Worker, weigh
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import WeightedLeastConnections
from cloud_dispatcher.core.settings import WeightSettings
from fleet_protocol.messages import (
    Benchmark,
    JobKey,
    ModelInfo,
    Presence,
    PresenceStatus,
    WorkerId,
    WorkerInfo,
)

SETTINGS = WeightSettings()
ANY = Need(None, 0)


def measured(tok_s: float, mbps: float | None) -> Benchmark:
    return Benchmark(decode_tok_s=tok_s, prefill_tok_s=0.0, bandwidth_mbps=mbps)


def fleet_of(*names: str, slots: int = 1, prefetch: int = 0) -> tuple[Fleet, list[Worker]]:
    fleet = Fleet(SETTINGS, WeightedLeastConnections())
    model = ModelInfo(name="small", version="1", context_tokens=1_000)
    info = WorkerInfo(boot="b", slots=slots, prefetch=prefetch, models=(model,))
    workers = [fleet.see(WorkerId(name), 0) for name in names]
    for worker in workers:
        fleet.set_info(worker, info)
        fleet.set_presence(worker, Presence(status=PresenceStatus.ONLINE, boot="b"))
    return fleet, workers


@pytest.mark.parametrize(
    ("benchmark", "expected"),
    [
        (measured(87.0, 100.0), (1.0, 1.0, 1.0)),
        (measured(870.0, 1_000.0), (1.0, 1.0, 1.0)),
        (measured(43.5, 25.0), (0.5, 0.25, 0.4)),
        (measured(43.5, None), (0.5, 0.5, 0.5)),
        (None, (0.5, 0.5, 0.5)),
        (measured(0.0, 0.0), (0.0, 0.0, 0.01)),
    ],
)
def test_the_weight_is_six_tenths_compute_and_four_tenths_bandwidth(
    benchmark: Benchmark | None, expected: tuple[float, float, float]
) -> None:
    assert weigh(benchmark, SETTINGS) == pytest.approx(expected)


def test_a_weight_never_exceeds_one_whatever_the_coefficients() -> None:
    settings = WeightSettings(compute_coefficient=1.0, bandwidth_coefficient=1.0)
    assert weigh(measured(99.0, 200.0), settings)[2] == 1.0


def test_a_worker_takes_as_many_as_its_slots_and_prefetch() -> None:
    fleet, (worker,) = fleet_of("w", slots=2, prefetch=1)
    for number in range(3):
        assert fleet.pick_worker(ANY, avoid=None) is worker
        fleet.lease(worker, JobKey(str(number)), 0)
    assert fleet.pick_worker(ANY, avoid=None) is None
    fleet.release(WorkerId("w"), JobKey("1"))
    fleet.release(WorkerId("w"), JobKey("1"))
    assert fleet.pick_worker(ANY, avoid=None) is worker
    assert worker.view().inflight == 2


def test_only_an_online_worker_with_a_model_takes_jobs() -> None:
    fleet, (worker,) = fleet_of("w")
    fleet.set_presence(worker, Presence(status=PresenceStatus.DRAINING, boot="b"))
    assert not fleet.has_free
    fleet.set_presence(worker, Presence(status=PresenceStatus.ONLINE, boot="b"))
    assert fleet.has_free
    fleet.set_info(worker, WorkerInfo(boot="b"))
    assert fleet.pick_worker(ANY, avoid=None) is None
    fleet.set_info(worker, None)
    assert not fleet.has_free


def test_a_silent_worker_is_back_with_its_next_sign_of_life() -> None:
    fleet, (worker,) = fleet_of("w")
    fleet.set_silent(worker)
    assert worker.status is PresenceStatus.OFFLINE
    assert not fleet.has_free
    assert fleet.see(WorkerId("w"), 9) is worker
    assert fleet.has_free


def test_an_operators_drain_ends_with_the_boot() -> None:
    fleet, (worker,) = fleet_of("w")
    fleet.hold_back(worker, held=True)
    fleet.set_presence(worker, Presence(status=PresenceStatus.ONLINE, boot="b"))
    assert worker.status is PresenceStatus.DRAINING
    fleet.set_presence(worker, Presence(status=PresenceStatus.ONLINE, boot="c"))
    assert worker.status is PresenceStatus.ONLINE


def test_the_fleet_knows_its_largest_context_by_model() -> None:
    fleet, (first, second) = fleet_of("a", "b")
    big = ModelInfo(name="big", version="1", context_tokens=8_000)
    fleet.set_info(second, WorkerInfo(boot="b", models=(big,)))
    assert fleet.contexts == {None: 8_000, "small": 1_000, "big": 8_000}
    fleet.remove(second.id)
    assert fleet.contexts == {None: 1_000, "small": 1_000}
    assert fleet.find(second.id) is None
    assert fleet.pick_worker(Need("big", 0), avoid=None) is None
    assert fleet.pick_worker(Need("small", 512), avoid=None) is first
