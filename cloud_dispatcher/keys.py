"""Names the dispatcher mints: ULIDs, unique in the fleet and sortable by time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_RANDOM_BITS: Final = 80
_LOW_BITS: Final = 20
_LOW_MASK: Final = (1 << _LOW_BITS) - 1


def first_key(at_ms: int) -> str:
    """Return the least ULID of a moment: keys minted from then on are not below it."""
    number = at_ms << _RANDOM_BITS
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


class KeyMint:
    """Mints ULIDs that only ever grow, within a millisecond and when the clock steps back."""

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        """Take a source of that many random bits, e.g. `secrets.randbits`."""
        self._random_bits = random_bits
        self._at_ms = -1
        self._last = 0
        self._high = -1
        self._head = ""

    def mint(self, now_ms: int) -> str:
        """Return a ULID: 48 bits of time, 80 of chance, as 26 characters of Crockford base32."""
        if now_ms > self._at_ms:
            self._at_ms = now_ms
            # The top random bit stays free: a millisecond's keys count up and never overflow.
            self._last = now_ms << _RANDOM_BITS | self._random_bits(_RANDOM_BITS - 1)
        else:
            self._last += 1
        low, high = self._last & _LOW_MASK, self._last >> _LOW_BITS
        if high != self._high:
            # The keys of one millisecond differ in their last four characters, hardly ever in more.
            self._high = high
            self._head = "".join([_PAIRS[high >> shift & 1023] for shift in range(100, -1, -10)])
        return f"{self._head}{_PAIRS[low >> 10]}{_PAIRS[low & 1023]}"
