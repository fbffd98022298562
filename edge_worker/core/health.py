"""What the host says of itself, and how much work it is trusted with when it is hot.

A hot host gets one slot fewer each `STEP_MS` until one is left: less at once is less heat, and the
jobs that run go on. At the critical temperature nothing begins any more. It gets its slots back one
by one, after a while of coolness for each: a board that was too hot with four jobs will be again.
"""

from __future__ import annotations

from typing import Final

import msgspec

HYSTERESIS_C: Final = 5.0
"""A hot host counts as hot until it is this much cooler than the limit."""
STEP_MS: Final = 15_000
"""A fan, or a slot fewer, needs some seconds to show in the temperature."""
RECOVERY_MS: Final = 60_000
"""So long a host must have been cool before it gets a slot back."""


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """What the host says of itself now. None where it cannot say."""

    cpu_pct: float
    mem_pct: float
    temp_c: float | None = None
    throttled: bool | None = None
    disk_free_mb: int | None = None
    disk_read_only: bool = False


class HeatLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Degrees Celsius.

    Attributes:
        soft_c: From here on fewer jobs at once.
        critical_c: From here on none begins.
    """

    soft_c: float = 90.0
    critical_c: float = 97.0


class Heat(msgspec.Struct, frozen=True, kw_only=True):
    """How hot the host is, and what it may do.

    Attributes:
        slots: Jobs it may work on at once; at least 1.
        is_hot: At the soft limit or throttled, or not cool again yet.
        is_critical: Nothing may begin.
        step_at_ms: When the next slot is taken or given, if it stays as it is.
    """

    slots: int
    is_hot: bool = False
    is_critical: bool = False
    step_at_ms: int = 0

    @property
    def open_slots(self) -> int:
        """What the engine is told: none at the critical temperature."""
        return 0 if self.is_critical else self.slots


def limits_of(
    board: str, *, soft_c: float | None = None, critical_c: float | None = None
) -> HeatLimits:
    """Return the operator's limits, or what suits the board.

    A Raspberry Pi lowers its clock from 80 degrees on and throttles hard at 85. Jetson modules do
    so at 97 to 99, as do most other processors.

    Raises:
        ValueError: The critical temperature is not above the soft one.
    """
    usual = HeatLimits(soft_c=80.0, critical_c=84.0) if "Raspberry Pi" in board else HeatLimits()
    soft = usual.soft_c if soft_c is None else soft_c
    gap_c = usual.critical_c - usual.soft_c
    critical = max(usual.critical_c, soft + gap_c) if critical_c is None else critical_c
    if critical <= soft:
        raise ValueError(f"critical_c ({critical:g}) must be above limit_c ({soft:g})")
    return HeatLimits(soft_c=soft, critical_c=critical)


def next_heat(
    heat: Heat, reading: HostReading, *, limits: HeatLimits, slots: int, now_ms: int
) -> Heat:
    """Return how it is after a reading, on a worker with so many slots when it is cool.

    A host without sensors is never hot.
    """
    warm = _reaches(reading, limits.soft_c) or bool(reading.throttled)
    mild = not warm and not _reaches(reading, limits.soft_c - HYSTERESIS_C)
    low_c = limits.critical_c - (HYSTERESIS_C if heat.is_critical else 0.0)
    critical = _reaches(reading, low_c)
    now_slots, step_at_ms = heat.slots, heat.step_at_ms
    if warm:
        if not heat.is_hot or now_ms >= heat.step_at_ms:
            now_slots, step_at_ms = max(1, now_slots - 1), now_ms + STEP_MS
    elif not mild or heat.is_hot:
        # Between the limits, or cool for the first time: the wait for a slot begins anew.
        step_at_ms = now_ms + RECOVERY_MS
    elif now_slots < slots and now_ms >= heat.step_at_ms:
        now_slots, step_at_ms = now_slots + 1, now_ms + RECOVERY_MS
    return Heat(
        slots=min(now_slots, slots),
        is_hot=warm or (heat.is_hot and not mild),
        is_critical=critical,
        step_at_ms=step_at_ms,
    )


def _reaches(reading: HostReading, limit_c: float) -> bool:
    return reading.temp_c is not None and reading.temp_c >= limit_c
