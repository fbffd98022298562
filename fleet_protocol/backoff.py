"""How long to wait before the next try."""

from __future__ import annotations

import random


class Backoff:
    """Doubling, capped, fully jittered: a fleet that lost its broker does not return as one.

    Args:
        first_s: Upper bound of the first wait.
        cap_s: Upper bound of any wait.
        rng: Where the jitter comes from; the system's by default.
    """

    def __init__(self, *, first_s: float, cap_s: float, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._rng = rng or random.SystemRandom()
        self._tries = 0

    def next_s(self) -> float:
        """Return the next wait: uniform between 0 and the doubled, capped bound."""
        # 2**30 first waits are beyond any cap; the bound keeps the power a float for ever.
        bound_s = min(self._cap_s, self._first_s * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return self._rng.uniform(0.0, bound_s)

    def reset(self) -> None:
        """Start over: it worked."""
        self._tries = 0
