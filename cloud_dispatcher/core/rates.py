"""How fast, and how much at once, an account may be used. Pure: instants come in as arguments."""

from __future__ import annotations

import math
from typing import Final

_SHRINK_PAUSE_MS: Final = 1_000
"""Refusals within this span have one cause, and shrink once."""
_DUST_MS: Final = 1e-6
"""What rounding adds to a wait, at most: nobody is told a whole millisecond for it."""


class TokenBucket:
    """Lets an amount per second through, and a burst at once. Who reserves goes in order.

    Args:
        per_s: Amount that comes back each second.
        burst: Most that can be saved up. A larger amount at once is let through when the bucket is
            full, and those behind it wait for it all.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._level = burst
        self._at_ms = 0

    def wait_ms(self, now_ms: int, amount: float = 1.0) -> int:
        """Return how long `amount` would have to wait; nothing is taken."""
        lacking = min(amount, self._burst) - self._level_at(now_ms)
        return max(0, math.ceil(1_000 * lacking / self._per_s - _DUST_MS))

    def is_full(self, now_ms: int) -> bool:
        """Whether no more can be saved up."""
        return self._level_at(now_ms) >= self._burst

    def reserve(self, now_ms: int, amount: float = 1.0) -> int:
        """Take `amount` and return how long to wait before it is used, in ms."""
        wait_ms = self.wait_ms(now_ms, amount)
        self._level, self._at_ms = self._level_at(now_ms) - amount, max(now_ms, self._at_ms)
        return wait_ms

    def give_back(self, amount: float) -> None:
        """Undo a reservation, or a part of it; a negative amount takes more."""
        self._level = min(self._burst, self._level + amount)

    def _level_at(self, now_ms: int) -> float:
        passed_s = max(0, now_ms - self._at_ms) / 1_000
        return min(self._burst, self._level + passed_s * self._per_s)


class Concurrency:
    """How many calls at once: halved by a refusal, grown by one for as many successes as there are.

    The rule that TCP shares a line by: additive increase, multiplicative decrease.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._shrunk_at_ms = -_SHRINK_PAUSE_MS

    @property
    def limit(self) -> int:
        """Calls at once, from 1 to the most that the settings allow."""
        return int(self._limit)

    def grow(self) -> None:
        """A call was answered."""
        self._limit = min(float(self._most), self._limit + 1 / self._limit)

    def shrink(self, now_ms: int) -> None:
        """A call was refused because there are too many."""
        if now_ms - self._shrunk_at_ms >= _SHRINK_PAUSE_MS:
            self._shrunk_at_ms = now_ms
            self._limit = max(1.0, self._limit / 2)
