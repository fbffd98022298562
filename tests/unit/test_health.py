"""How much work a host is trusted with when it is hot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.health import (
    HYSTERESIS_C,
    RECOVERY_MS,
    STEP_MS,
    Heat,
    HeatLimits,
    HostReading,
    limits_of,
    next_heat,
)

LIMITS = HeatLimits(soft_c=80.0, critical_c=90.0)
SLOTS = 4


def reading(temp_c: float | None = None, *, throttled: bool | None = None) -> HostReading:
    return HostReading(cpu_pct=1.0, mem_pct=1.0, temp_c=temp_c, throttled=throttled)


class Board:
    """A board whose temperature is told every 5 s."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.heat = Heat(slots=SLOTS)

    def read(self, temp_c: float | None, *, throttled: bool = False, span_ms: int = 5_000) -> Heat:
        """Stay like this for a span; return how it is at its end."""
        for _ in range(span_ms // 5_000):
            self.now_ms += 5_000
            now = reading(temp_c, throttled=throttled)
            self.heat = next_heat(self.heat, now, limits=LIMITS, slots=SLOTS, now_ms=self.now_ms)
        return self.heat


@pytest.mark.parametrize(
    ("now", "was_hot", "hot"),
    [
        (reading(79.9), False, False),
        (reading(80.0), False, True),
        (reading(80.0 - HYSTERESIS_C), True, True),
        (reading(79.9 - HYSTERESIS_C), True, False),
        (reading(20.0, throttled=True), False, True),
        (reading(20.0, throttled=False), True, False),
        (reading(None), True, False),
    ],
)
def test_hot_is_throttled_or_at_the_limit_and_stays_so_until_it_cooled(
    *, now: HostReading, was_hot: bool, hot: bool
) -> None:
    before = Heat(slots=SLOTS, is_hot=was_hot)
    assert next_heat(before, now, limits=LIMITS, slots=SLOTS, now_ms=0).is_hot is hot


def test_a_hot_board_loses_slot_after_slot_until_one_is_left() -> None:
    board = Board()
    assert board.read(81.0).slots == SLOTS - 1
    assert board.read(81.0, span_ms=STEP_MS - 5_000).slots == SLOTS - 1
    assert board.read(81.0).slots == SLOTS - 2
    assert board.read(81.0, span_ms=10 * STEP_MS).slots == 1


def test_firmware_that_throttles_counts_as_heat() -> None:
    assert Board().read(50.0, throttled=True, span_ms=STEP_MS + 5_000).slots == SLOTS - 2


def test_between_the_limits_nothing_is_taken_and_nothing_given() -> None:
    board = Board()
    board.read(81.0)
    assert board.read(77.0, span_ms=100 * RECOVERY_MS).slots == SLOTS - 1


def test_a_cool_board_gets_its_slots_back_one_by_one_and_never_more_than_it_had() -> None:
    board = Board()
    board.read(81.0, span_ms=10 * STEP_MS)
    assert not board.read(60.0).is_hot
    assert board.read(60.0, span_ms=RECOVERY_MS - 5_000).slots == 1
    assert board.read(60.0).slots == 2
    assert board.read(60.0, span_ms=RECOVERY_MS).slots == 3
    assert board.read(60.0, span_ms=10 * RECOVERY_MS).slots == SLOTS


def test_a_board_that_warms_up_again_waits_anew_for_its_slot() -> None:
    board = Board()
    board.read(81.0)
    board.read(60.0, span_ms=RECOVERY_MS)
    board.read(77.0)
    assert board.read(60.0, span_ms=RECOVERY_MS - 5_000).slots == SLOTS - 1
    assert board.read(60.0, span_ms=10_000).slots == SLOTS


def test_at_the_critical_temperature_nothing_begins_until_it_cooled() -> None:
    board = Board()
    assert board.read(90.0).open_slots == 0
    assert board.read(89.0 - HYSTERESIS_C + 1).open_slots == 0
    assert board.read(89.9 - HYSTERESIS_C).open_slots == board.heat.slots > 0


@given(
    temps=st.lists(
        st.tuples(st.none() | st.floats(20, 110), st.booleans()), min_size=1, max_size=60
    )
)
def test_slots_stay_between_one_and_all_and_move_by_one(
    temps: list[tuple[float | None, bool]],
) -> None:
    board = Board()
    for temp_c, throttled in temps:
        before = board.heat.slots
        after = board.read(temp_c, throttled=throttled).slots
        assert 1 <= after <= SLOTS
        assert abs(after - before) <= 1


@pytest.mark.parametrize(
    ("board", "soft_c", "critical_c", "limits"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", None, None, (80.0, 84.0)),
        ("NVIDIA Jetson Orin Nano Developer Kit", None, None, (90.0, 97.0)),
        ("Raspberry Pi 4 Model B", 70.0, None, (70.0, 84.0)),
        ("Raspberry Pi 4 Model B", 84.0, None, (84.0, 88.0)),
        ("Linux x86_64", 60.0, 61.0, (60.0, 61.0)),
    ],
)
def test_the_limits_are_the_operators_else_the_boards(
    board: str, soft_c: float | None, critical_c: float | None, limits: tuple[float, float]
) -> None:
    found = limits_of(board, soft_c=soft_c, critical_c=critical_c)
    assert (found.soft_c, found.critical_c) == limits


def test_a_critical_temperature_below_the_soft_one_is_refused() -> None:
    with pytest.raises(ValueError, match="critical_c"):
        limits_of("x", soft_c=95.0, critical_c=90.0)
