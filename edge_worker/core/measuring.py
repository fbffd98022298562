"""When the worker measures its line and itself while it runs.

The line: once the dispatcher is there, and again every six hours; where no echo comes in time,
sooner, but ever more rarely: a line that is too slow for a probe has better things to carry. Its
own speed: only if the last measurement is doubtful (the machine was busy) or old, and only in an
idle moment, for the engine answers nobody meanwhile.
"""

from __future__ import annotations

from typing import Final

BANDWIDTH_EVERY_MS: Final = 6 * 3_600_000
"""A measurement carries as much as the heartbeats of so long, and lines seldom change."""
BANDWIDTH_RETRY_MOST_MS: Final = 3_600_000
BANDWIDTH_RETRY_MS: Final = 60_000
IDLE_MS: Final = 60_000
"""Without a job for so long, a worker may be busy with itself for two seconds."""
SPEED_RETRY_MS: Final = 3_600_000
SPEED_LASTS_MS: Final = 30 * 86_400_000
"""Fans gather dust and systems are upgraded: a speed is not for ever."""


class Measuring:
    """Keeps the dates; its owner carries the measurements out and says what came of them."""

    def __init__(self, *, speed_due_at_ms: int | None) -> None:
        """`speed_due_at_ms`: from when on the speed is worth measuring; None: never."""
        self._bandwidth_at_ms = 0
        self._bandwidth_failures = 0
        self._speed_at_ms = speed_due_at_ms
        self._idle_since_ms: int | None = None

    def begin_bandwidth(self, now_ms: int) -> None:
        """Take note that the line is being measured: an outcome that never comes is a failure."""
        self._bandwidth_at_ms = now_ms + BANDWIDTH_RETRY_MS

    def end_bandwidth(self, now_ms: int, *, is_known: bool) -> None:
        """Take note of the outcome."""
        self._bandwidth_failures = 0 if is_known else self._bandwidth_failures + 1
        wait_ms = BANDWIDTH_EVERY_MS
        if not is_known:
            wait_ms = min(
                BANDWIDTH_RETRY_MS << min(self._bandwidth_failures - 1, 6), BANDWIDTH_RETRY_MOST_MS
            )
        self._bandwidth_at_ms = now_ms + wait_ms

    def bandwidth_is_due(self, now_ms: int) -> bool:
        """Tell whether the line is to be measured, at first or again."""
        return now_ms >= self._bandwidth_at_ms

    def speed_is_due(self, now_ms: int, *, is_idle: bool) -> bool:
        """Tell whether this is the moment to measure the engine; if so, it is taken as begun."""
        if not is_idle:
            self._idle_since_ms = None
            return False
        if self._idle_since_ms is None:
            self._idle_since_ms = now_ms
        if self._speed_at_ms is None or now_ms < self._speed_at_ms:
            return False
        if now_ms - self._idle_since_ms < IDLE_MS:
            return False
        self._speed_at_ms = now_ms + SPEED_RETRY_MS
        return True

    def end_speed(self, now_ms: int, *, is_steady: bool) -> None:
        """Take note of a measurement; one under load is repeated within the hour."""
        self._speed_at_ms = now_ms + (SPEED_LASTS_MS if is_steady else SPEED_RETRY_MS)
