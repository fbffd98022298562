"""Taking turns: who had least of late is next; who comes anew begins where the others are."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, Final, Generic, TypeAlias, TypeVar

_Member = TypeVar("_Member")
_Rank: TypeAlias = tuple[Any, ...]

_Entry: TypeAlias = tuple[_Rank, int, _Member]

_SPARE: Final = 64
"""Ghosts are laid only when they are the larger half by so many."""


class Ranked(Generic[_Member]):
    """Members with a rank each; the lowest is found in O(log members), of equals the first put."""

    __slots__ = ("_entries", "_heap", "_serial")

    def __init__(self) -> None:
        self._entries: dict[_Member, _Entry[_Member]] = {}
        # Also holds what these entries were before, ghosts.
        self._heap: list[_Entry[_Member]] = []
        # Members may not compare, and a ghost may have the rank of who took its place.
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, member: _Member) -> bool:
        return member in self._entries

    def put(self, member: _Member, rank: _Rank) -> None:
        """Let a member be there with this rank, whatever it had before."""
        self._serial += 1
        entry = self._entries[member] = (rank, self._serial, member)
        heap = self._heap
        heappush(heap, entry)
        if len(heap) > 2 * len(self._entries) + _SPARE:
            self._lay_ghosts()

    def discard(self, member: _Member) -> None:
        """Let a member not be there. Unknown ones are ignored."""
        entries = self._entries
        if entries.pop(member, None) and len(self._heap) > 2 * len(entries) + _SPARE:
            self._lay_ghosts()

    def first(self) -> tuple[_Rank, _Member]:
        """Return the lowest rank and whose it is.

        Raises:
            IndexError: Nobody is there.
        """
        heap, entries = self._heap, self._entries
        while True:
            entry = heap[0]
            rank, _, member = entry
            if entries.get(member) is entry:
                return rank, member
            heappop(heap)

    def _lay_ghosts(self) -> None:
        self._heap = list(self._entries.values())
        heapify(self._heap)


class Turns:
    """Counts turns in virtual time: start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996).

    Time advances by one while each of those that wait has had a turn, and at least to the turn of
    who is served; so who was away saves nothing up, and who waits is passed by none for ever.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._next: dict[str, float] = {}
        self._waiting: dict[str, int] = {}

    def enter(self, name: str) -> None:
        """Count one more thing that waits for a turn of this name."""
        self._waiting[name] = self._waiting.get(name, 0) + 1

    def leave(self, name: str) -> None:
        """Count one less."""
        left = self._waiting[name] - 1
        if left:
            self._waiting[name] = left
        else:
            del self._waiting[name]

    def turn(self, name: str) -> int:
        """Return in which turn this name would be served next; the lowest goes first."""
        return int(max(self._next.get(name, 0.0), self._now))

    def took(self, name: str) -> None:
        """Count a turn that was taken, before those that wait for it no more leave."""
        start = max(self._next.get(name, 0.0), self._now)
        self._next[name] = start + 1.0
        self._now = start + 1.0 / max(len(self._waiting), 1)
        if len(self._next) > 2 * len(self._waiting) + _SPARE:
            self._next = {key: at for key, at in self._next.items() if at > self._now}
