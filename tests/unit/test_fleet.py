"""Workers, their weights and what they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.fleet import Fleet, Worker, weigh
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.policies import (
    ExpectedFinish,
    PolicyName,
    RoundRobin,
    SchedulingSettings,
    WeightedLeastConnections,
)
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import Policy
from cloud_dispatcher.core.settings import EngineSettings, WeightSettings
from fleet_protocol.messages import (
    Activity,
    Benchmark,
    DeviceId,
    JobId,
    JobKey,
    JobStatus,
    JobSubmit,
    LocalAnswer,
    ModelInfo,
    Presence,
    PresenceStatus,
    Usage,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

SETTINGS = WeightSettings()
ANY = Need(None, 0)


def measured(tok_s: float, mbps: float | None) -> Benchmark:
    return Benchmark(decode_tok_s=tok_s, prefill_tok_s=0.0, bandwidth_mbps=mbps)


def fleet_of(
    *names: str,
    slots: int = 1,
    prefetch: int = 0,
    policy: Policy | None = None,
    settings: WeightSettings = SETTINGS,
) -> tuple[Fleet, list[Worker]]:
    fleet = Fleet(settings, policy or WeightedLeastConnections())
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


@pytest.mark.parametrize(
    ("ms_per_token", "strain_most", "expected"),
    [(20.0, 4.0, 0.5), (40.0, 4.0, 0.25), (160.0, 4.0, 0.125), (5.0, 4.0, 1.0), (40.0, 1.0, 0.5)],
)
def test_what_answers_take_corrects_the_compute_that_a_worker_declares(
    ms_per_token: float, strain_most: float, expected: float
) -> None:
    policy = WeightedLeastConnections(strain_most=strain_most)
    settings = WeightSettings(reference_tok_s=100.0)
    fleet, (worker,) = fleet_of("w", policy=policy, settings=settings)
    model = ModelInfo(name="small", version="1", context_tokens=1_000)
    fleet.set_info(worker, WorkerInfo(boot="b", models=(model,), benchmark=measured(50.0, 25.0)))
    assert worker.view().compute == 0.5
    for _ in range(60):
        fleet.lease(worker, JobKey("K"), 0)
        fleet.begin(worker, JobKey("K"))
        fleet.answered(leased(), said(40), round(10 + 40 * ms_per_token))
        fleet.release(worker.id, JobKey("K"))
    assert worker.view().compute == pytest.approx(expected, rel=0.05)
    assert worker.view().bandwidth == 0.25
    assert worker.view().weight == pytest.approx(0.6 * expected + 0.1, rel=0.05)


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


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.lists(st.sampled_from([("small", 1_000), ("small", 2_000), ("big", 8_000)])),
            st.sampled_from([None, "lobby", "roof"]),
        )
    )
)
def test_what_the_fleet_can_do_is_the_same_learned_one_by_one_or_counted_anew(
    said: list[tuple[str, list[tuple[str, int]], str | None]],
) -> None:
    learning, counting = (Fleet(WeightSettings(), WeightedLeastConnections()) for _ in range(2))
    for name, models, label in said:
        info = WorkerInfo(
            boot="b",
            models=tuple(ModelInfo(name=n, version="1", context_tokens=t) for n, t in models),
            labels={} if label is None else {label: ""},
        )
        for fleet in (learning, counting):
            fleet.set_info(fleet.see(WorkerId(name), 0), info)
        for wanted in (None, "lobby", "roof"):
            learning.contexts_of(wanted)
        assert learning.builds is not None
    for wanted in (None, "lobby", "roof"):
        assert learning.contexts_of(wanted) == counting.contexts_of(wanted)
    assert learning.builds == counting.builds


def leased(key: str = "K", *, assigned_at_ms: int = 0) -> Job:
    submit = JobSubmit(prompt="x")
    return Job(
        key=JobKey(key),
        device=DeviceId("d"),
        id=JobId("j"),
        submit=submit,
        received_at_ms=0,
        status=JobStatus.ASSIGNED,
        worker=WorkerId("w"),
        assigned_at_ms=assigned_at_ms,
    )


def said(tokens: int, *, cached: bool = False) -> LocalAnswer:
    usage = Usage(completion_tokens=tokens)
    return LocalAnswer(text="x", model="small", usage=usage, cached=cached)


def test_an_answer_teaches_the_fleet_how_fast_its_worker_is() -> None:
    fleet, (worker,) = fleet_of("w", slots=2)
    fleet.lease(worker, JobKey("K"), 0)
    fleet.begin(worker, JobKey("K"))
    fleet.answered(leased(), said(40), 410)
    assert worker.pace.ms_per_token("small", unknown_ms=1.0) == pytest.approx(10.0, rel=0.05)


def test_the_word_that_it_began_teaches_how_far_away_a_worker_is() -> None:
    fleet, (worker,) = fleet_of("w")
    for number in range(30):
        key = str(number)
        fleet.lease(worker, JobKey(key), 0)
        fleet.begin(worker, JobKey(key))
        fleet.started(leased(key), 330)
        fleet.release(worker.id, JobKey(key))
    assert worker.pace.link_ms == pytest.approx(80.0, rel=0.05)


@pytest.mark.parametrize(("begun", "cached"), [(False, False), (True, True)])
def test_leases_of_an_earlier_run_and_cached_answers_teach_nothing(
    *, begun: bool, cached: bool
) -> None:
    fleet, (worker,) = fleet_of("w", slots=2)
    fleet.lease(worker, JobKey("K"), 0)
    if begun:
        fleet.begin(worker, JobKey("K"))
    fleet.answered(leased(), said(40, cached=cached), 410)
    fleet.release(worker.id, JobKey("K"))
    assert worker.pace.ms_per_token("small", unknown_ms=1.0) == 1.0
    assert not worker.company


def test_a_throttled_heartbeat_changes_which_pace_counts() -> None:
    fleet, (worker,) = fleet_of("w")
    state = WorkerState(ts=0, seq=0, status=Activity.HOT, cpu_pct=0, mem_pct=0, inflight=0)
    fleet.set_state(worker, replace(state, throttled=True))
    assert worker.pace.is_hot
    fleet.set_state(worker, state)
    assert not worker.pace.is_hot


def test_a_job_goes_where_its_own_model_was_seen_to_be_quick() -> None:
    """Of three boards with two models one was quick with one, one with the other; one lacks one."""
    fleet, workers = fleet_of("a", "b", "c", slots=2, policy=ExpectedFinish())
    both = tuple(
        ModelInfo(name=name, version="1", context_tokens=1_000) for name in ("small", "large")
    )
    paces_ms = {"a": (10.0, 80.0), "b": (40.0, 20.0), "c": (5.0, None)}
    for worker in workers:
        has = tuple(model for model, ms in zip(both, paces_ms[worker.id], strict=True) if ms)
        fleet.set_info(worker, WorkerInfo(boot="b", slots=2, models=has))
        for model, ms_per_token in zip(both, paces_ms[worker.id], strict=True):
            for _ in range(40 if ms_per_token else 0):
                fleet.lease(worker, JobKey("K"), 0)
                fleet.begin(worker, JobKey("K"))
                answer = replace(said(40), model=model.name)
                job = replace(leased(), worker=worker.id)
                fleet.answered(job, answer, round(10 + 40 * (ms_per_token or 0.0)))
                fleet.release(worker.id, JobKey("K"))
    order: dict[str, list[str]] = {}
    for name in ("small", "large"):
        need = fleet.policy.ask(Need(name, 0), leased())
        while (found := fleet.pick_worker(need, avoid=None)) is not None:
            order.setdefault(name, []).append(found.id)
            fleet.set_silent(found)
        for worker in workers:
            fleet.see(worker.id, 0)
    assert order == {"small": ["c", "a", "b"], "large": ["b", "a"]}


def test_the_settings_name_the_policy() -> None:
    scheduling = SchedulingSettings(policy=PolicyName.ROUND_ROBIN)
    engine = Engine(EngineSettings(scheduling=scheduling), "epoch")
    assert isinstance(engine._ledger.fleet.policy, RoundRobin)
    assert isinstance(
        Engine(EngineSettings(), "epoch")._ledger.fleet.policy, WeightedLeastConnections
    )
