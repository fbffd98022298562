"""What was measured on this machine, in a file: the next start takes no time.

A few entries, newest first, so that two models or settings in turn do not displace each other. A
file that cannot be read, or was written by a release that measured otherwise, is no measurement;
one that cannot be written is no reason not to work.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from edge_worker.core.tuning import Measurement
from fleet_protocol.codec import UNREADABLE

ENTRIES_MOST: Final = 8
_LEAST_SPAN_S: Final = 0.1
"""Systems count processor time in hundredths of a second: of less than this nothing can be said."""


class MeasurementFile:
    """The measurements of a data folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def alone(self, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
        """Be the only process that measures for this file; yields whether it is.

        The kernel lets go however the other one ends. Where nothing can be locked everybody is.

        Args:
            on_wait: Called before a wait for the one that measures; None: do not wait.
        """
        is_alone = True
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                lock = stack.enter_context(self._path.with_suffix(".lock").open("w"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    is_alone = on_wait is not None
                    if on_wait is not None:
                        on_wait()
                        fcntl.flock(lock, fcntl.LOCK_EX)
            yield is_alone

    def find(self, of: Sequence[str]) -> Measurement | None:
        """Return what was measured of exactly this, if it was."""
        return next((entry for entry in self._entries() if entry.of == tuple(of)), None)

    def keep(self, measurement: Measurement) -> None:
        """Write it down in place of what was known of the same."""
        others = [entry for entry in self._entries() if entry.of != measurement.of]
        data = msgspec.json.encode([measurement, *others][:ENTRIES_MOST])
        # Of this process alone: another one may write just now.
        part = self._path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):
            part.write_bytes(msgspec.json.format(data))
            part.replace(self._path)

    def _entries(self) -> list[Measurement]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Measurement])
        except (OSError, *UNREADABLE):
            return []


class LoadMeter:
    """Tells how busy others have kept the processor since it was made."""

    def __init__(self) -> None:
        self._busy_s, self._own_s, self._all_s = self._read()

    def share(self) -> float:
        """Return the share of the processor, 0..1, that others took; 0 over a blink."""
        busy_s, own_s, all_s = self._read()
        foreign_s = (busy_s - self._busy_s) - (own_s - self._own_s)
        span_s = all_s - self._all_s
        if span_s < _LEAST_SPAN_S:
            return 0.0
        return round(min(1.0, max(0.0, foreign_s / span_s)), 3)

    def _read(self) -> tuple[float, float, float]:
        """Return seconds of all processors: busy, busy for this process, and in all."""
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        busy_s = times.user + times.system + getattr(times, "nice", 0.0)
        # What the hypervisor gave to another machine was taken from us, too.
        busy_s += getattr(times, "steal", 0.0)
        own = os.times()
        return busy_s, own.user + own.system, busy_s + idle_s
