"""Whether the host is fit for work: its heat, the room on its disk, whether that takes anything.

What is not fit says so and gets no new jobs; those it has it finishes. It is fit again by itself.
"""

from __future__ import annotations

from typing import Final

from edge_worker.core.health import Heat, HeatLimits, HostReading, next_heat
from fleet_protocol.messages import Unfit

ROOM_AGAIN: Final = 1.5
"""A disk that was too full counts as such until so many times the limit is free."""


class Fitness:
    """What a session knows of its host.

    Args:
        slots: Jobs at once when it is cool.
        heat: When it is hot.
        disk_low_mb: Less room than that is too little; 0: it is never looked at.

    Attributes:
        heat: How hot it is.
        is_spool_ok: Whether the last attempt to write the spool succeeded.
    """

    def __init__(self, slots: int, *, heat: HeatLimits, disk_low_mb: int) -> None:
        self.heat = Heat(slots=slots)
        self.is_spool_ok = True
        self._slots = slots
        self._limits = heat
        self._disk_low_mb = disk_low_mb
        self._is_full = False
        self._is_read_only = False

    @property
    def unfit(self) -> Unfit | None:
        """Why it takes no jobs; None: it does. The gravest reason comes first."""
        if self._is_read_only:
            return Unfit.DISK_READ_ONLY
        if not self.is_spool_ok:
            return Unfit.SPOOL_UNAVAILABLE
        if self._is_full:
            return Unfit.DISK_LOW
        return Unfit.OVERHEATED if self.heat.is_critical else None

    def read(self, reading: HostReading, now_ms: int) -> None:
        """Take a reading in."""
        self.heat = next_heat(
            self.heat, reading, limits=self._limits, slots=self._slots, now_ms=now_ms
        )
        self._is_read_only = reading.disk_read_only
        if reading.disk_free_mb is not None:
            least_mb = self._disk_low_mb * (ROOM_AGAIN if self._is_full else 1.0)
            self._is_full = reading.disk_free_mb < least_mb
