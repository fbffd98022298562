"""The dispatcher's clock: near the wall clock, but it never jumps, not even over a restart.

Leases and deadlines hang on it, and instants that are stored outlive the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

_DAY_NS: Final = 86_400_000_000_000
_SLOWNESS: Final = 10
"""A difference to the wall clock is made up for at the tenth part of the speed of time."""


class ClockNote(msgspec.Struct, frozen=True, kw_only=True):
    """What the clock said once, for the next run.

    Attributes:
        boot: Name of the machine's boot.
        steady_ns: What the machine's own counter said then; it counts anew with each boot.
        at_ns: What this clock said: UTC epoch nanoseconds.
    """

    boot: str
    steady_ns: int
    at_ns: int


def resumed_ns(note: ClockNote | None, *, boot: str, steady_ns: int, wall_ns: int) -> int:
    """Return what the clock says at a start, as UTC epoch nanoseconds.

    Within a boot it goes on, whatever was done to the wall clock meanwhile. Over a boot nobody
    knows how long it took: it follows the wall clock, but not back. A wall clock that is more than
    a day ahead is followed at once: that was no clock before, as of a board without a battery.
    """
    if note is None:
        return wall_ns
    if boot and note.boot == boot and steady_ns >= note.steady_ns:
        at_ns = note.at_ns + steady_ns - note.steady_ns
    else:
        at_ns = max(note.at_ns, wall_ns)
    return wall_ns if wall_ns - at_ns > _DAY_NS else at_ns


class SlewedClock:
    """UTC epoch milliseconds, as steady as they can be.

    Where the wall clock was stepped, this one follows a tenth faster or slower than time until both
    agree.

    Args:
        wall_ns: The wall clock, as UTC epoch nanoseconds.
        steady_ns: A counter of nanoseconds that nobody can set.
        start_ns: What the clock says now.
    """

    def __init__(
        self, wall_ns: Callable[[], int], steady_ns: Callable[[], int], *, start_ns: int
    ) -> None:
        self._wall_ns = wall_ns
        self._steady_ns = steady_ns
        self._now_ns = start_ns
        self._read_at_ns = steady_ns()

    def __call__(self) -> int:
        """Return the time."""
        return self._read()[1] // 1_000_000

    def note(self, boot: str) -> ClockNote:
        """Return what the next run needs to go on."""
        steady_ns, now_ns = self._read()
        return ClockNote(boot=boot, steady_ns=steady_ns, at_ns=now_ns)

    def wall_ahead_ms(self) -> int:
        """Return how far the wall clock is ahead of this one; below 0: behind."""
        return (self._wall_ns() - self._read()[1]) // 1_000_000

    def _read(self) -> tuple[int, int]:
        steady_ns = self._steady_ns()
        passed_ns = steady_ns - self._read_at_ns
        apart_ns = self._wall_ns() - self._now_ns - passed_ns
        most_ns = passed_ns // _SLOWNESS
        self._read_at_ns = steady_ns
        self._now_ns += passed_ns + min(max(apart_ns, -most_ns), most_ns)
        return steady_ns, self._now_ns
