"""Who gets the next job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.pace import Pace, slowdown
from cloud_dispatcher.core.policies import (
    ExpectedFinish,
    LeastConnections,
    PolicyName,
    RoundRobin,
    SchedulingSettings,
    TwoChoices,
    WeightedLeastConnections,
    policy_of,
)
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import DrawnWorkers, FreeWorkers, WorkerLoad
from fleet_protocol.messages import DeviceId, JobId, JobKey, JobSubmit, Usage, WorkerId

ANY = Need(None, 0)
POLICY = WeightedLeastConnections()


def by_inflight() -> FreeWorkers:
    return FreeWorkers(lambda load, _: (load.inflight,))


def filed(**inflight: int) -> FreeWorkers:
    free = by_inflight()
    for name, jobs in inflight.items():
        free.file(WorkerId(name), WorkerLoad(1.0, jobs, 0), lambda _: True)
    return free


def test_an_idle_heavy_worker_comes_before_an_idle_light_one() -> None:
    heavy, light = WorkerLoad(1.0, 0, 0), WorkerLoad(0.3, 0, 0)
    assert POLICY.rank(heavy, ANY) < POLICY.rank(light, ANY)


def test_a_heavy_worker_is_preferred_until_its_load_exceeds_the_lighter_one() -> None:
    light = POLICY.rank(WorkerLoad(0.3, 0, 0), ANY)
    assert POLICY.rank(WorkerLoad(1.0, 2, 0), ANY) < light
    assert POLICY.rank(WorkerLoad(1.0, 3, 0), ANY) > light


def test_ties_go_to_the_heavier_then_to_the_first_id() -> None:
    even, heavier = WorkerLoad(0.5, 0, 0), WorkerLoad(1.0, 1, 0)
    assert POLICY.rank(even, ANY)[0] == POLICY.rank(heavier, ANY)[0]
    free = FreeWorkers(POLICY.rank)
    free.file(WorkerId("b"), heavier, lambda _: True)
    free.file(WorkerId("a"), even, lambda _: True)
    assert free.pick_worker(ANY) == "b"
    assert filed(b=1, a=1).pick_worker(ANY) == "a"


def test_round_robin_takes_the_one_that_waited_longest() -> None:
    policy = RoundRobin()
    assert policy.rank(WorkerLoad(0.1, 9, 1), ANY) < policy.rank(WorkerLoad(1.0, 0, 2), ANY)


def test_nobody_free_means_nobody() -> None:
    assert by_inflight().pick_worker(ANY) is None


def test_a_worker_is_avoided_only_while_there_is_another() -> None:
    free = filed(a=1, b=2)
    assert free.pick_worker(ANY, avoid=WorkerId("a")) == "b"
    assert free.pick_worker(ANY) == "a"
    free.strike(WorkerId("b"))
    assert free.pick_worker(ANY, avoid=WorkerId("a")) == "a"


def test_a_worker_is_picked_only_for_needs_that_it_serves() -> None:
    free = by_inflight()
    free.file(WorkerId("a"), WorkerLoad(1.0, 0, 0), lambda need: need.tokens <= 512)
    assert free.pick_worker(Need(None, 512)) == "a"
    assert free.pick_worker(Need(None, 1_024)) is None


def test_there_are_never_more_heaps_than_a_bound() -> None:
    free = filed(a=1)
    for number in range(1_000):
        assert free.pick_worker(Need(f"model{number}", 0)) == "a"
    assert len(free._rankings) <= 64


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5) | st.none()), max_size=200),
    st.sampled_from([None, *"abcde"]),
)
def test_the_pick_is_always_that_of_a_plain_search(
    changes: list[tuple[str, int | None]], avoid: str | None
) -> None:
    free, ranks = by_inflight(), dict[str, int]()
    for name, rank in changes:
        if rank is None:
            free.strike(WorkerId(name))
            ranks.pop(name, None)
        else:
            free.file(WorkerId(name), WorkerLoad(1.0, rank, 0), lambda _: True)
            ranks[name] = rank
        others = {key: value for key, value in ranks.items() if key != avoid} or ranks
        expected = min(others, key=lambda key: (others[key], key)) if others else None
        assert free.pick_worker(ANY, avoid=WorkerId(avoid) if avoid else None) == expected


@pytest.mark.parametrize("inflight", [0, 1, 7])
def test_the_formula_is_inflight_plus_one_over_weight(inflight: int) -> None:
    assert POLICY.rank(WorkerLoad(0.25, inflight, 0), ANY)[0] == (inflight + 1) / 0.25


# ---------------------------------------------------------------- what is learned


def taught(declared_ms: float | None, ms_per_token: float, *, times: int = 30) -> Pace:
    pace = Pace()
    pace.declare("small", declared_ms)
    for _ in range(times):
        span_ms = round(40 * ms_per_token * slowdown(2) + pace.link_ms)
        pace.answered("small", span_ms, 40.0, jobs=2, slots=4)
    return pace


def test_a_pace_is_learned_whatever_was_declared() -> None:
    for declared_ms in (5.0, 20.0, 80.0):
        pace = taught(declared_ms, 20.0)
        assert pace.ms_per_token("small", unknown_ms=1.0) == pytest.approx(20.0, rel=0.05)
        assert pace.ms_per_token(None, unknown_ms=1.0) == pytest.approx(20.0, rel=0.05)
        assert pace.strain == pytest.approx(20.0 / declared_ms, rel=0.05)


def test_before_it_is_seen_to_work_a_worker_is_believed() -> None:
    pace = Pace()
    assert pace.ms_per_token(None, unknown_ms=7.0) == 7.0
    pace.declare("small", 11.0)
    assert pace.ms_per_token("small", unknown_ms=7.0) == 11.0


def test_a_new_word_of_a_worker_does_not_change_what_it_was_seen_to_take() -> None:
    pace = taught(10.0, 40.0)
    assert pace.strain == pytest.approx(4.0, rel=0.05)
    pace.declare("small", 40.0)
    assert pace.strain == pytest.approx(1.0, rel=0.05)
    assert pace.ms_per_token(None, unknown_ms=1.0) == pytest.approx(40.0, rel=0.05)


def test_a_pace_is_one_models_and_who_names_none_gets_the_first() -> None:
    pace = taught(None, 10.0)
    for _ in range(30):
        pace.answered("large", round(2_000 + pace.link_ms), 40.0, jobs=1, slots=4)
    for model, expected_ms in (("small", 10.0), ("large", 50.0), (None, 10.0), ("unseen", 7.0)):
        assert pace.ms_per_token(model, unknown_ms=7.0) == pytest.approx(expected_ms, rel=0.05)
    pace.declare("large", None)
    assert pace.ms_per_token(None, unknown_ms=7.0) == pytest.approx(50.0, rel=0.05)


def test_until_it_is_seen_to_work_while_hot_a_worker_counts_as_quick_as_ever() -> None:
    pace = taught(20.0, 10.0)
    pace.is_hot = True
    assert pace.ms_per_token("small", unknown_ms=1.0) == pytest.approx(10.0, rel=0.05)


def test_what_a_worker_is_worth_while_hot_is_learned_apart() -> None:
    pace = taught(10.0, 10.0)
    pace.is_hot = True
    for _ in range(30):
        pace.answered("small", round(1_000 + pace.link_ms), 40.0, jobs=1, slots=4)
    assert pace.ms_per_token("small", unknown_ms=1.0) == pytest.approx(25.0, rel=0.05)
    pace.is_hot = False
    assert pace.ms_per_token("small", unknown_ms=1.0) == pytest.approx(10.0, rel=0.05)


def test_one_absurd_answer_is_no_pace() -> None:
    pace = taught(10.0, 10.0)
    pace.answered("small", 10_000_000, 40.0, jobs=1, slots=4)
    assert pace.ms_per_token("small", unknown_ms=1.0) < 14.0


def test_what_waited_for_a_slot_strains_but_is_no_pace() -> None:
    pace = taught(10.0, 10.0)
    for _ in range(30):
        pace.answered("small", 3_000, 40.0, jobs=5, slots=4)
    assert pace.ms_per_token("small", unknown_ms=1.0) == pytest.approx(10.0, rel=0.05)
    assert pace.strain > 3.0


# ---------------------------------------------------------------- the other policies


def job(chars: int, max_tokens: int = 64) -> Job:
    submit = JobSubmit(prompt="x" * chars, max_tokens=max_tokens)
    return Job(
        key=JobKey("K"), device=DeviceId("d"), id=JobId("j"), submit=submit, received_at_ms=0
    )


def test_a_job_is_expected_to_be_done_first_where_its_tokens_are_written_fastest() -> None:
    policy = ExpectedFinish()
    need = policy.ask(ANY, job(200))
    quick, slow = taught(None, 10.0), taught(None, 30.0)
    idle = policy.rank(WorkerLoad(0.5, 0, 0, slots=4, pace=slow), need)
    assert policy.rank(WorkerLoad(0.5, 3, 0, slots=4, pace=quick), need) < idle
    full = policy.rank(WorkerLoad(0.5, 5, 0, slots=4, pace=quick), need)
    assert full > policy.rank(WorkerLoad(0.5, 4, 0, slots=4, pace=quick), need)


def test_short_jobs_mind_a_slow_link_that_long_ones_do_not() -> None:
    policy = ExpectedFinish()
    far, near = taught(None, 10.0), taught(None, 13.0)
    for _ in range(60):
        far.started(250 + 150)
    loads = [WorkerLoad(0.5, 0, 0, slots=4, pace=pace) for pace in (far, near)]
    short, long = policy.ask(ANY, job(20, max_tokens=8)), policy.ask(ANY, job(9_000, 512))
    assert policy.rank(loads[1], short) < policy.rank(loads[0], short)
    assert policy.rank(loads[0], long) < policy.rank(loads[1], long)


def test_expected_answers_follow_the_answers_that_came() -> None:
    policy = ExpectedFinish()
    before = policy.ask(ANY, job(20, max_tokens=256)).work
    for _ in range(300):
        policy.answered(job(20, max_tokens=256), Usage(prompt_tokens=5, completion_tokens=8))
    assert policy.ask(ANY, job(20, max_tokens=256)).work <= before - 3


def test_the_one_that_holds_least_is_blind_to_weight() -> None:
    policy = LeastConnections()
    assert policy.rank(WorkerLoad(0.1, 0, 5), ANY) < policy.rank(WorkerLoad(1.0, 1, 0), ANY)


def drawn(*loads: int) -> DrawnWorkers:
    free = DrawnWorkers(TwoChoices().rank)
    for number, inflight in enumerate(loads):
        free.file(WorkerId(f"w{number}"), WorkerLoad(1.0, inflight, 0), lambda _: True)
    return free


def test_of_two_drawn_the_one_that_holds_less_gets_the_job() -> None:
    assert {drawn(0, 3).pick_worker(ANY) for _ in range(20)} == {"w0"}
    many = drawn(*[5] * 9, 0)
    picks = [many.pick_worker(ANY) for _ in range(5_000)]
    # It is among two of ten in a fifth of all draws, and wins each; every other one may be drawn.
    assert picks.count(WorkerId("w9")) / 5_000 == pytest.approx(0.2, abs=0.03)
    assert len(set(picks)) == 10


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5) | st.none()), max_size=200))
def test_only_who_is_filed_is_drawn(changes: list[tuple[str, int | None]]) -> None:
    free, there = DrawnWorkers(TwoChoices().rank), dict[str, int]()
    for name, inflight in changes:
        if inflight is None:
            free.strike(WorkerId(name))
            there.pop(name, None)
        else:
            free.file(WorkerId(name), WorkerLoad(1.0, inflight, 0), lambda need: need.tokens < 9)
            there[name] = inflight
        assert len(free) == len(there)
        assert (free.pick_worker(ANY) or "none") in (there or {"none"})
        assert free.pick_worker(Need(None, 9)) is None
        if len(there) > 1:
            assert free.pick_worker(ANY, avoid=WorkerId(name)) in there


def test_every_policy_has_a_name() -> None:
    made = {type(policy_of(SchedulingSettings(policy=name))) for name in PolicyName}
    assert len(made) == len(PolicyName)
