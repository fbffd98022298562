"""How often a password may be guessed. Pure: instants come in."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from cloud_dispatcher.adapters.http.addresses import household

WINDOW_MS: Final = 15 * 60_000
PER_PAIR: Final = 5
"""For one name from one address."""
PER_ADDRESS: Final = 20
PER_NAME: Final = 100
"""From anywhere: high, or strangers could lock somebody out; low enough for a long password."""
_SUBJECTS_MOST: Final = 20_000

_Subject = tuple[str, str]


class LoginLimits:
    """Counts attempts that failed within the last quarter of an hour.

    An attempt counts from its beginning, so that many at once are no way round; one that was right
    is taken back. Who has one address of IPv6 has 2^64 of them, which count as one.
    """

    def __init__(self) -> None:
        self._at_ms: OrderedDict[_Subject, deque[int]] = OrderedDict()

    def begin(self, name: str, address: str, now_ms: int) -> int:
        """Count an attempt and return 0, or return how long nobody may try, and count nothing."""
        limits = _limits(name, address)
        wait_ms = max(self._wait_ms(subject, most, now_ms) for subject, most in limits.items())
        if wait_ms == 0:
            for subject in limits:
                self._at_ms.setdefault(subject, deque()).append(now_ms)
                self._at_ms.move_to_end(subject)
            while len(self._at_ms) > _SUBJECTS_MOST:
                self._at_ms.popitem(last=False)
        return wait_ms

    def succeeded(self, name: str, address: str) -> None:
        """Forget what was tried for this name from this address, and this attempt elsewhere."""
        pair, *others = _limits(name, address)
        self._at_ms.pop(pair, None)
        for subject in others:
            attempts = self._at_ms.get(subject)
            if attempts:
                attempts.pop()

    def _wait_ms(self, subject: _Subject, most: int, now_ms: int) -> int:
        attempts = self._at_ms.get(subject)
        if attempts is None:
            return 0
        while attempts and attempts[0] <= now_ms - WINDOW_MS:
            attempts.popleft()
        return attempts[0] + WINDOW_MS - now_ms if len(attempts) >= most else 0


def _limits(name: str, address: str) -> dict[_Subject, int]:
    home = household(address)
    return {(name, home): PER_PAIR, ("", home): PER_ADDRESS, (name, ""): PER_NAME}
