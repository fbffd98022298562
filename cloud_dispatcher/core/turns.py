"""Taking turns: who had least of late is next; who comes anew begins where the others are."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, Final, Generic, TypeAlias, TypeVar

_Member = TypeVar("_Member")
_Rank: TypeAlias = tuple[Any, ...]

_SPARE: Final = 64


class Ranked(Generic[_Member]):
    """Members with a rank each; the lowest is found in O(log members). No two ranks are equal."""

    def __init__(self) -> None:
        self._ranks: dict[_Member, _Rank] = {}
        self._heap: list[tuple[_Rank, _Member]] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, member: _Member) -> bool:
        return member in self._ranks

    def put(self, member: _Member, rank: _Rank) -> None:
        """Let a member be there with this rank, whatever it had before."""
        self._ranks[member] = rank
        heappush(self._heap, (rank, member))
        self._trim()

    def discard(self, member: _Member) -> None:
        """Let a member not be there. Unknown ones are ignored."""
        if self._ranks.pop(member, None) is not None:
            self._trim()

    def first(self) -> tuple[_Rank, _Member]:
        """Return the lowest rank and whose it is.

        Raises:
            IndexError: Nobody is there.
        """
        while True:
            rank, member = self._heap[0]
            if self._ranks.get(member) is rank:
                return rank, member
            heappop(self._heap)

    def _trim(self) -> None:
        """Keep the heap from holding mostly ghosts."""
        if len(self._heap) > 2 * len(self._ranks) + _SPARE:
            self._heap = [(rank, member) for member, rank in self._ranks.items()]
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
        return int(self._start(name))

    def took(self, name: str) -> None:
        """Count a turn that was taken, before those that wait for it no more leave."""
        start = self._start(name)
        self._next[name] = start + 1.0
        self._now = max(self._now, start) + 1.0 / max(len(self._waiting), 1)
        if len(self._next) > 2 * len(self._waiting) + _SPARE:
            self._next = {key: at for key, at in self._next.items() if at > self._now}

    def _start(self, name: str) -> float:
        return max(self._next.get(name, 0.0), self._now)
