"""The simulator's parts: boards, arrivals, faults, figures, the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.policies import PolicyName
from cloud_dispatcher.simulation.arrivals import Demand, draw, read_trace
from cloud_dispatcher.simulation.board import Board, Claim, Row
from cloud_dispatcher.simulation.comparison import Trial, rows_of, run_trial
from cloud_dispatcher.simulation.drawing import draw_svg
from cloud_dispatcher.simulation.faults import Trouble, turns_of
from cloud_dispatcher.simulation.figures import estimate, jain, quantile, ratio
from cloud_dispatcher.simulation.kinds import KINDS, BoardKind, batch_gain
from cloud_dispatcher.simulation.scenario import (
    Arrivals,
    Faults,
    Pattern,
    Scenario,
    Spells,
    read_scenario,
)
from fleet_protocol import messages as m
from fleet_protocol.errors import ConfigError

KIND = BoardKind(decode_tok_s=100.0, prefill_tok_s=400.0, slots=2, prefetch=1)
NOTHING = Spells(share=0.0)
CALM = Faults(
    throttling=NOTHING, board_loss=NOTHING, link_loss=NOTHING, stale_share=0.0, wrong_share=0.0
)


def board(claim: Claim | None = None) -> Board:
    return Board(m.WorkerId("b"), KIND, claim or Claim())


def row(key: str, tokens: float, attempt: int = 1) -> Row:
    answer = m.LocalAnswer(text="", model="simulated")
    return Row(m.JobKey(key), attempt, tokens, answer)


def done(found: list[Row]) -> list[str]:
    return [one.key for one in found]


# ---------------------------------------------------------------- boards


def test_a_job_alone_takes_its_tokens_over_the_speed() -> None:
    alone = board()
    alone.take(row("a", 50.0), 0)
    assert alone.done_at_ms() == 501  # 500 ms, and the millisecond in which it is seen
    assert done(alone.finish(499)) == []
    assert done(alone.finish(500)) == ["a"]
    assert alone.busy_ms == 500


def test_two_jobs_share_what_a_batch_of_two_gains() -> None:
    shared = board()
    shared.take(row("a", 50.0), 0)
    shared.take(row("b", 50.0), 0)
    each_tok_s = 100.0 * batch_gain(2) / 2
    assert shared.done_at_ms() == int(50.0 / each_tok_s * 1_000) + 1
    assert sorted(done(shared.finish(10_000))) == ["a", "b"]


def test_the_third_job_waits_for_a_slot_of_two() -> None:
    full = board()
    for key in "abc":
        full.take(row(key, 50.0), 0)
    assert [one.ends is None for one in full.rows.values()] == [False, False, True]
    assert len(full.finish(800)) == 2
    assert full.done_at_ms() == 1_301
    assert done(full.finish(1_301)) == ["c"]


def test_a_throttled_board_takes_longer_by_the_part_that_is_left() -> None:
    hot = board()
    hot.take(row("a", 50.0), 0)
    hot.set_speed(0.5, 250)
    assert hot.done_at_ms() == 751
    assert hot.heartbeat(300).throttled


def test_after_a_power_cut_the_spool_is_worked_on_from_its_beginning() -> None:
    cut = board()
    cut.take(row("a", 50.0), 0)
    cut.lose_power(400)
    assert cut.done_at_ms() is None
    assert cut.held.running[0].job == "a"
    cut.get_power(1_000)
    assert cut.done_at_ms() == 1_501
    assert cut.name_of_boot == "boot2"


def test_an_assignment_that_comes_twice_is_one_and_a_later_attempt_replaces_it() -> None:
    twice = board()
    twice.take(row("a", 50.0), 0)
    twice.take(row("a", 50.0), 100)
    assert twice.done_at_ms() == 501
    twice.take(row("a", 50.0, attempt=2), 200)
    assert twice.done_at_ms() == 701
    twice.cancel(m.JobKey("a"), 1, 300)
    assert len(twice.rows) == 1
    twice.cancel(m.JobKey("a"), 2, 300)
    assert not twice.rows
    assert twice.done_at_ms() is None


def test_a_board_may_declare_a_wrong_speed_and_speak_of_what_is_long_past() -> None:
    wrong = board(Claim(speed=4.0, stale_ms=10_000))
    assert wrong.info.benchmark is not None
    assert wrong.info.benchmark.decode_tok_s == 400.0
    wrong.heartbeat(0)
    wrong.set_speed(0.4, 1_000)
    assert not wrong.heartbeat(5_000).throttled
    assert not wrong.heartbeat(10_500).throttled
    assert wrong.heartbeat(15_500).throttled


def test_what_was_answered_unheard_is_held_until_it_is_said() -> None:
    cut = board()
    cut.take(row("a", 50.0), 0)
    cut.take(row("b", 90.0), 0)
    (ended,) = cut.finish(900)
    finished = m.JobDone(attempt=ended.attempt, answer=ended.answer)
    cut.outbox.append(e.DoneReceived(worker=cut.id, job=ended.key, done=finished))
    assert cut.held.running == (m.AttemptRef(job="b", attempt=1),)
    assert cut.held.finished == (m.AttemptRef(job="a", attempt=1),)


@given(
    st.lists(
        st.tuples(st.sampled_from("tcsf"), st.integers(0, 400), st.floats(1.0, 80.0)), max_size=40
    )
)
def test_no_work_is_lost_or_done_twice_whatever_happens(
    steps: list[tuple[str, int, float]],
) -> None:
    """What rows got is what the processor gave: the meter never drifts from the work."""
    one, now_ms, taken, finished = board(), 0, 0, 0
    for number, (what, span_ms, amount) in enumerate(steps):
        now_ms += span_ms
        finished += len(one.finish(now_ms))
        if what == "t":
            one.take(row(str(number), amount), now_ms)
            taken += 1
        elif what == "c" and one.rows:
            one.cancel(next(iter(one.rows)), 1, now_ms)
            taken -= 1
        elif what == "s":
            one.set_speed(min(amount / 80.0 + 0.1, 1.0), now_ms)
        assert all(left > -1e-3 for left in one.remaining_tokens(now_ms))
        assert len(one.rows) == taken - finished
        assert (one.done_at_ms() is None) == (not one.rows)
    while (due_ms := one.done_at_ms()) is not None:
        assert one.finish(due_ms)


def test_batches_gain_what_was_measured_and_never_lose() -> None:
    assert batch_gain(1) == 1.0
    assert batch_gain(4) == pytest.approx(136 / 67)
    gains = [batch_gain(rows) for rows in range(1, 20)]
    assert gains == sorted(gains)
    assert batch_gain(99) == gains[-1]


def test_every_kind_says_where_its_figures_are_from() -> None:
    for kind in KINDS.values():
        assert kind.source.startswith(("modelled: ", "measured: "))


# ---------------------------------------------------------------- arrivals


def drawn(arrivals: Arrivals, seed: int = 1) -> list[Demand]:
    return draw(arrivals, capacity_tok_s=1_000.0, cost=0.2, random=Random(seed))


def test_the_load_is_the_work_that_comes_over_what_can_be_done() -> None:
    demands = drawn(Arrivals(jobs=20_000, load=0.5))
    tokens = sum(one.answer_tokens + 0.2 * one.prompt_tokens for one in demands)
    assert tokens / (demands[-1].at_ms / 1_000) == pytest.approx(500.0, rel=0.05)
    assert all(1 <= one.answer_tokens <= one.max_tokens for one in demands)


def test_bursts_keep_the_mean_and_bring_jobs_as_much_faster() -> None:
    arrivals = Arrivals(pattern=Pattern.BURSTS, jobs=20_000, jobs_per_s=50.0)
    demands = drawn(arrivals)
    assert len(demands) / (demands[-1].at_ms / 1_000) == pytest.approx(50.0, rel=0.05)
    within = sum(one.at_ms % 60_000 < 10_000 for one in demands)
    rates = within / 10.0, (len(demands) - within) / 50.0
    assert rates[0] / rates[1] == pytest.approx(4.0, rel=0.1)


def test_the_same_seed_draws_the_same_jobs() -> None:
    assert drawn(Arrivals(jobs=50)) == drawn(Arrivals(jobs=50))
    assert drawn(Arrivals(jobs=50)) != drawn(Arrivals(jobs=50), seed=2)


def view(job: str, at_ms: int, **more: object) -> m.JobView:
    known = {"priority": 5, "prompt_chars": 400, "status": m.JobStatus.OK, **more}
    return m.JobView(job=job, device="d", id=job, received_at_ms=at_ms, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_log_of_ones_own_fleet_is_played_from_its_first_job_on(tmp_path: Path, form: str) -> None:
    usage = m.Usage(prompt_tokens=90, completion_tokens=30)
    result = m.JobResult(id="b", status=m.JobStatus.OK, usage=usage)
    views = [
        view("b", 1_700_000_002_500, result=result, deadline_at_ms=1_700_000_007_500),
        view("a", 1_700_000_000_000),
        view("whole", 1_700_000_000_100, parts=3),
        view("a", 1_700_000_000_000),
    ]
    lines = [as_json(one) for one in views]
    text = '{"jobs": [' + ",".join(lines) + "]}" if form == "json" else "\n".join(lines)
    path = tmp_path / "jobs"
    path.write_text(text)
    first, second = read_trace(path, Arrivals())
    assert first == Demand(0, 0, 100, 20, 64, 10_000, 5)
    assert second == Demand(2_500, 0, 90, 30, 64, 5_000, 5)
    faster = read_trace(path, Arrivals(jobs_per_s=8.0))
    assert [one.at_ms for one in faster] == [0, 250]


def as_json(one: m.JobView) -> str:
    return msgspec.json.encode(one).decode()


@pytest.mark.parametrize("text", ["", "{}", '{"jobs": []}', "job\n"])
def test_a_log_without_jobs_is_refused_with_the_next_step(tmp_path: Path, text: str) -> None:
    (tmp_path / "jobs").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_trace(tmp_path / "jobs", Arrivals())
    assert "fleet jobs ls" in caught.value.hint


# ---------------------------------------------------------------- faults


def test_troubles_begin_and_end_in_turn() -> None:
    spells = Spells(share=1.0, every_s=20.0, span_s=5.0)
    faults = Faults(throttling=spells, board_loss=spells, link_loss=NOTHING)
    turns = turns_of(faults, Random(3), until_ms=600_000)
    for trouble in (Trouble.THROTTLING, Trouble.BOARD_LOSS):
        mine = [turn for turn in turns if turn.trouble is trouble]
        assert len(mine) > 10
        assert [turn.begins for turn in mine] == [True, False] * (len(mine) // 2)
        assert mine == sorted(mine, key=lambda turn: turn.at_ms)
    assert not any(turn.trouble is Trouble.LINK_LOSS for turn in turns)


# ---------------------------------------------------------------- scenarios, figures, the picture


def test_a_scenario_is_read_with_boards_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        "boards = {fast = 2, pi4 = 3}\n[kinds.fast]\ndecode_tok_s = 300\nprefill_tok_s = 900\n"
        "[engine.weight]\nreference_tok_s = 300.0\n"
    )
    scenario = read_scenario(path)
    assert scenario.all_kinds["fast"].decode_tok_s == 300
    assert scenario.engine.weight.reference_tok_s == 300


@pytest.mark.parametrize("text", ["boards = {pi9 = 1}", "boards = {pi4 = 0}", "[faults]\nrain = 1"])
def test_a_wrong_scenario_names_what_is_wrong(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"pi9|at least one|rain"):
        read_scenario(tmp_path / "s.toml")


def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    values = list(range(1, 101))
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]


def test_jains_index_is_one_for_equals_and_one_over_all_for_a_single_one() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_an_interval_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.high) == pytest.approx((2.0, 2.0 + 4.303 / 3**0.5))
    same = ratio([2.0, 20.0], [1.0, 10.0])
    assert (same.low, same.mean, same.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_picture_is_svg_with_a_line_for_each_policy() -> None:
    scenario = Scenario(boards={"pi5": 3}, arrivals=Arrivals(jobs=60), faults=CALM)
    trials = [
        Trial(scenario=scenario, policy=policy, seed=seed)
        for policy in (PolicyName.WLC, PolicyName.ROUND_ROBIN)
        for seed in (1, 2)
    ]
    rows = rows_of(trials, [run_trial(trial) for trial in trials])
    picture = ET.fromstring(draw_svg(rows, title="a < b"))  # noqa: S314 - our own text
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"wlc", "round_robin", "a < b", "p99"} <= set(texts)
    for figure in ("p50, 95, 99", "in time", "busy", "fairness"):
        assert sum(figure in str(text) for text in texts) == 2
