"""The dispatcher's clock between two runs: a note in a small file beside the job store."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import msgspec
import structlog

from cloud_dispatcher.clock import ClockNote, SlewedClock, resumed_ns
from fleet_protocol.codec import UNREADABLE

_log = structlog.get_logger(__name__)

_NOTED_EVERY_S: Final = 10.0
_STEP_MS: Final = 2_000
"""What the wall clock must move by between two notes to be worth a line in the log."""
_HINT: Final = (
    "the wall clock was set; ours follows at a tenth of the speed of time. To have it follow at "
    "once: stop the dispatcher, remove {} and start it again"
)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_COUNTER: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _steady_ns() -> int:
    """Nanoseconds since the boot; where the system can tell, with those that it slept."""
    return time.clock_gettime_ns(_COUNTER)


class ClockFile:
    """Starts the clock where the last run left it, and keeps the note fresh.

    Args:
        path: Of the note. Without it, or where it cannot be read, the clock starts at the wall
            clock; so an operator who knows better removes it while the dispatcher is stopped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _boot_id()
        self._is_writable = True

    def start(self) -> SlewedClock:
        """Return the clock."""
        start_ns = resumed_ns(
            self._read(), boot=self._boot, steady_ns=_steady_ns(), wall_ns=time.time_ns()
        )
        clock = SlewedClock(time.time_ns, _steady_ns, start_ns=start_ns)
        self._write(clock.note(self._boot))
        return clock

    async def keep(self, clock: SlewedClock) -> None:
        """Write the note again and again until cancelled, and say when the wall clock was set."""
        known_ms = 0
        while True:
            ahead_ms = clock.wall_ahead_ms()
            if abs(ahead_ms - known_ms) > _STEP_MS:
                _log.warning("clock.apart", wall_ahead_ms=ahead_ms, hint=_HINT.format(self._path))
            known_ms = ahead_ms
            await asyncio.to_thread(self._write, clock.note(self._boot))
            await asyncio.sleep(_NOTED_EVERY_S)

    def _write(self, note: ClockNote) -> None:
        """Replace the note. That it cannot be written is no reason to stop."""
        beside = self._path.with_suffix(f"{self._path.suffix}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(note))
            beside.replace(self._path)
        except OSError as error:
            if self._is_writable:
                _log.warning("clock.not_noted", path=str(self._path), error=str(error))
            self._is_writable = False
        else:
            self._is_writable = True

    def _read(self) -> ClockNote | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=ClockNote)
        except FileNotFoundError:
            return None
        except (OSError, *UNREADABLE) as error:
            _log.warning("clock.note_unreadable", path=str(self._path), error=str(error))
            return None


def _boot_id() -> str:
    """Return the name of this boot; empty where the system has none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
