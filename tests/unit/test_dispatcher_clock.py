"""The dispatcher's clock never jumps, whatever is done to the wall clock, also over a restart."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.adapters.clock_file import ClockFile
from cloud_dispatcher.clock import ClockNote, SlewedClock, resumed_ns

SECOND_NS = 1_000_000_000
HOUR_NS = 3_600 * SECOND_NS
NOW_NS = 1_790_000_000 * SECOND_NS


class Machine:
    """A wall clock that can be set, and a counter that cannot."""

    def __init__(self) -> None:
        self.wall_ns = NOW_NS
        self.steady_ns = 77 * SECOND_NS

    def pass_time(self, span_ns: int) -> None:
        self.wall_ns += span_ns
        self.steady_ns += span_ns

    def clock(self, start_ns: int = NOW_NS) -> SlewedClock:
        return SlewedClock(lambda: self.wall_ns, lambda: self.steady_ns, start_ns=start_ns)


def test_without_a_step_it_is_the_wall_clock() -> None:
    machine = Machine()
    clock = machine.clock()
    for span_ns in (0, 1, 999, 10**6, HOUR_NS):
        machine.pass_time(span_ns)
        assert clock() == machine.wall_ns // 1_000_000


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS])
def test_a_step_is_followed_at_a_tenth_of_the_speed_of_time(step_ns: int) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_ns += step_ns
    assert clock() == NOW_NS // 1_000_000
    machine.pass_time(100 * SECOND_NS)
    slewed_ms = 110_000 if step_ns > 0 else 90_000
    assert clock() == NOW_NS // 1_000_000 + slewed_ms
    machine.pass_time(10 * HOUR_NS)
    assert clock() == machine.wall_ns // 1_000_000
    assert clock.wall_ahead_ms() == 0


@given(st.lists(st.tuples(st.integers(0, 10**13), st.integers(-(10**13), 10**13)), max_size=30))
def test_no_span_is_ever_off_by_more_than_a_tenth(steps: list[tuple[int, int]]) -> None:
    machine = Machine()
    clock = machine.clock()
    said_ms = clock()
    for span_ns, step_ns in steps:
        machine.wall_ns += step_ns
        machine.pass_time(span_ns)
        passed_ms = clock() - said_ms
        said_ms += passed_ms
        assert 0.9 * span_ns - 10**6 <= passed_ms * 10**6 <= 1.1 * span_ns + 10**6


@pytest.mark.parametrize("step_ns", [0, HOUR_NS, -HOUR_NS])
def test_within_a_boot_a_restart_goes_on_whatever_the_wall_clock_says(step_ns: int) -> None:
    note = ClockNote(boot="b", steady_ns=10, at_ns=NOW_NS)
    wall_ns = NOW_NS + 60 * SECOND_NS + step_ns
    at_ns = resumed_ns(note, boot="b", steady_ns=10 + 60 * SECOND_NS, wall_ns=wall_ns)
    assert at_ns == NOW_NS + 60 * SECOND_NS


def test_over_a_boot_the_wall_clock_is_followed_but_not_back() -> None:
    note = ClockNote(boot="b", steady_ns=10, at_ns=NOW_NS)
    later_ns = NOW_NS + 5 * HOUR_NS
    assert resumed_ns(note, boot="c", steady_ns=99, wall_ns=later_ns) == later_ns
    assert resumed_ns(note, boot="c", steady_ns=99, wall_ns=NOW_NS - HOUR_NS) == NOW_NS
    assert resumed_ns(note, boot="c", steady_ns=99, wall_ns=0) == NOW_NS, "no battery"


def test_where_boots_have_no_name_each_start_counts_as_one() -> None:
    note = ClockNote(boot="", steady_ns=10, at_ns=NOW_NS)
    later_ns = NOW_NS + 5 * HOUR_NS
    assert resumed_ns(note, boot="", steady_ns=20, wall_ns=later_ns) == later_ns


def test_a_counter_that_began_anew_is_another_boot() -> None:
    note = ClockNote(boot="b", steady_ns=10**15, at_ns=NOW_NS)
    assert resumed_ns(note, boot="b", steady_ns=5, wall_ns=NOW_NS - HOUR_NS) == NOW_NS


def test_a_clock_that_was_none_is_left_behind_at_the_next_start() -> None:
    note = ClockNote(boot="b", steady_ns=0, at_ns=90 * SECOND_NS)
    assert resumed_ns(note, boot="b", steady_ns=SECOND_NS, wall_ns=NOW_NS) == NOW_NS


def test_the_note_lies_beside_the_store_and_the_next_run_begins_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "dispatcher.clock"
    first = ClockFile(path).start()
    said_ms = first()
    real_ns = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real_ns() - HOUR_NS)
    again = ClockFile(path).start()
    assert said_ms <= again() < said_ms + 60_000
    assert again.wall_ahead_ms() < -3_500_000
    monkeypatch.undo()
    path.unlink()
    assert abs(ClockFile(path).start().wall_ahead_ms()) < 1_000


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"boot": 1}'])
def test_a_note_that_cannot_be_read_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dispatcher.clock"
    path.write_bytes(content)
    clock = ClockFile(path).start()
    assert abs(clock.wall_ahead_ms()) < 1_000
    assert set(json.loads(path.read_bytes())) == {"boot", "steady_ns", "at_ns"}


def test_a_note_that_cannot_be_written_keeps_nobody_from_working(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    clock = ClockFile(blocked / "dispatcher.clock").start()
    assert abs(clock.wall_ahead_ms()) < 1_000
