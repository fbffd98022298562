"""What the host says of itself, and when it is too hot to be trusted with more work."""

from __future__ import annotations

from typing import Final

import msgspec

HYSTERESIS_C: Final = 5.0
"""A hot host counts as hot until it is this much cooler than the limit."""


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """What the host says of itself now. None where it cannot say."""

    cpu_pct: float
    mem_pct: float
    temp_c: float | None = None
    throttled: bool | None = None
    disk_free_mb: int | None = None


def is_hot(reading: HostReading, *, limit_c: float, was_hot: bool) -> bool:
    """Tell whether the host is too hot: throttled by its firmware, or at the limit.

    Once hot it stays hot until it cooled by `HYSTERESIS_C`, so that the fleet does not see it
    flicker. A host without sensors is never hot.
    """
    if reading.throttled:
        return True
    if reading.temp_c is None:
        return False
    return reading.temp_c >= (limit_c - HYSTERESIS_C if was_hot else limit_c)
