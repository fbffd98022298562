"""Which names a store has surely never held: most new jobs need not be looked for on the disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SLOTS: Final = 2**26
"""Bits, a power of two: 8 MB, of which the system gives what is touched."""
_FULL: Final = _SLOTS // 8


class NameFilter:
    """A set that may say yes wrongly, but no only rightly: a Bloom filter of one hash.

    With 1,000,000 names it is wrong about 1.5 % of the others; to be wrong costs a look at the
    disk. One thread adds, another may ask.
    """

    def __init__(self, names: Iterable[tuple[str, str]] = ()) -> None:
        self._bits = bytearray(_SLOTS // 8)
        self._added = 0
        self.add_all(names)

    def __repr__(self) -> str:
        return f"<NameFilter of {self._added} names>"

    @property
    def is_full(self) -> bool:
        """Whether so many were added that it should be made anew, of those that still are there."""
        return self._added >= _FULL

    def add_all(self, names: Iterable[tuple[str, str]]) -> None:
        """Remember these."""
        bits = self._bits
        for name in names:
            slot = hash(name) & (_SLOTS - 1)
            bits[slot >> 3] |= 1 << (slot & 7)
            self._added += 1

    def may_hold(self, name: tuple[str, str]) -> bool:
        """Whether it was perhaps added; False: surely not."""
        slot = hash(name) & (_SLOTS - 1)
        return bool(self._bits[slot >> 3] & (1 << (slot & 7)))
