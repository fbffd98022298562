"""Which of the workers with a free slot gets the next job: the interface, and how one is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.pace import Pace
from cloud_dispatcher.core.queue import Need
from fleet_protocol.messages import Usage, WorkerId

Rank: TypeAlias = tuple[float, ...]
"""A sort key: the lowest gets the job."""

_NEEDS_MOST: Final = 64


class WorkerLoad(msgspec.Struct, frozen=True):
    """What a policy may look at.

    Attributes:
        weight: Above 0 up to 1.
        inflight: Leases the worker holds.
        turn: Number of the fleet's last lease that went to this worker; 0 before its first.
        slots: Jobs it works on at once.
        pace: What was learned of its speed.
    """

    weight: float
    inflight: int
    turn: int
    slots: int = 1
    pace: Pace = msgspec.field(default_factory=Pace)


Serves: TypeAlias = Callable[[Need], bool]
RankOf: TypeAlias = Callable[[WorkerLoad, Need], Rank]


class Pool(Protocol):
    """The workers with a free slot."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def file(self, worker: WorkerId, load: WorkerLoad, serves: Serves) -> None:
        """Let a worker be free with this load, for the needs that it `serves`."""
        ...

    def strike(self, worker: WorkerId) -> None:
        """Let a worker not be free. Unknown ones are ignored."""
        ...

    def pick_worker(self, need: Need, *, avoid: WorkerId | None = None) -> WorkerId | None:
        """Return the one that gets the job; `avoid` only if there is no other."""
        ...


class Policy(ABC):
    """Ranks workers by their own load alone, so that one change re-files one worker.

    Attributes:
        strain_most: A worker's speed is corrected by what its answers show, so many times at most.
    """

    strain_most: float = 1.0

    @abstractmethod
    def rank(self, load: WorkerLoad, need: Need) -> Rank:
        """Return the sort key of a free worker; equal ones are sorted by id."""

    def ask(self, need: Need, job: Job) -> Need:
        """Return the need by which workers are ranked for a job; few different ones."""
        del job
        return need

    def answered(self, job: Job, usage: Usage) -> None:  # noqa: B027 - most learn nothing
        """Learn how long an answer was."""

    def pool(self) -> Pool:
        """Return an empty pool that picks as this policy wants."""
        return FreeWorkers(self.rank)


_Entry: TypeAlias = tuple[Any, ...]
"""The rank's numbers, then the worker: flat, for tuples within tuples compare at half the speed."""


class _Ranking:
    """Workers by rank. Who is not free any more may still be in it.

    Attributes:
        entries: The entry that counts, of each worker; it is in the heap, among older ones.
    """

    __slots__ = ("entries", "heap")

    def __init__(self, entries: Iterable[_Entry]) -> None:
        self.entries: dict[WorkerId, _Entry] = {entry[-1]: entry for entry in entries}
        self.heap = list(self.entries.values())
        heapify(self.heap)

    def put(self, worker: WorkerId, rank: Rank) -> None:
        """Let a worker have a rank; one that is what it was costs nothing."""
        entry = (*rank, worker)
        if self.entries.get(worker) != entry:
            self.entries[worker] = entry
            heappush(self.heap, entry)


class FreeWorkers:
    """Picks the best one, for each kind of need.

    One heap a need with lazy invalidation: a worker whose rank changed is filed anew and its old
    entry thrown away when it surfaces. Picking costs O(log workers), not O(workers).
    """

    def __init__(self, rank: RankOf) -> None:
        self._rank = rank
        self._filed: dict[WorkerId, tuple[WorkerLoad, Serves]] = {}
        self._rankings: dict[Need, _Ranking] = {}

    def __len__(self) -> int:
        return len(self._filed)

    def file(self, worker: WorkerId, load: WorkerLoad, serves: Serves) -> None:
        """Let a worker be free with this load, for the needs that it `serves`."""
        filed = self._filed
        filed[worker] = (load, serves)
        most = 2 * len(filed) + 64
        for need, ranking in self._rankings.items():
            if serves(need):
                ranking.put(worker, self._rank(load, need))
                if len(ranking.heap) > most:
                    self._rankings[need] = _Ranking(self._entries(need))
            else:
                ranking.entries.pop(worker, None)

    def strike(self, worker: WorkerId) -> None:
        """Let a worker not be free. Unknown ones are ignored."""
        self._filed.pop(worker, None)

    def pick_worker(self, need: Need, *, avoid: WorkerId | None = None) -> WorkerId | None:
        """Return the best free worker for a need; `avoid` only if there is no other."""
        if not self._filed:
            return None
        ranking = self._ranking(need)
        best = self._first(ranking)
        if best is None or best != avoid:
            return best
        entry = heappop(ranking.heap)
        other = self._first(ranking)
        heappush(ranking.heap, entry)
        return other or best

    def _ranking(self, need: Need) -> _Ranking:
        ranking = self._rankings.get(need)
        if ranking is None:
            if len(self._rankings) >= _NEEDS_MOST:
                self._rankings.clear()
            ranking = self._rankings[need] = _Ranking(self._entries(need))
        return ranking

    def _entries(self, need: Need) -> Iterator[_Entry]:
        for worker, (load, serves) in self._filed.items():
            if serves(need):
                yield (*self._rank(load, need), worker)

    def _first(self, ranking: _Ranking) -> WorkerId | None:
        """Return the best free worker; its entry is the heap's first then."""
        heap, entries = ranking.heap, ranking.entries
        while heap:
            entry = heap[0]
            worker: WorkerId = entry[-1]
            if entries.get(worker) is entry:
                if worker in self._filed:
                    return worker
                del entries[worker]
            heappop(heap)
        return None


class DrawnWorkers:
    """Draws two, the better of which gets the job: the power of two choices, at O(1).

    Drawing is a plain generator's, so a run can be repeated.
    """

    def __init__(self, rank: RankOf) -> None:
        self._rank = rank
        self._filed: dict[WorkerId, tuple[WorkerLoad, Serves]] = {}
        self._lists: dict[Need, tuple[list[WorkerId], dict[WorkerId, int]]] = {}
        self._state = 1

    def __len__(self) -> int:
        return len(self._filed)

    def file(self, worker: WorkerId, load: WorkerLoad, serves: Serves) -> None:
        """Let a worker be free with this load, for the needs that it `serves`."""
        self._filed[worker] = (load, serves)
        for need, (members, places) in self._lists.items():
            if serves(need):
                if worker not in places:
                    places[worker] = len(members)
                    members.append(worker)
            else:
                _leave(worker, members, places)

    def strike(self, worker: WorkerId) -> None:
        """Let a worker not be free. Unknown ones are ignored."""
        if self._filed.pop(worker, None) is not None:
            for members, places in self._lists.values():
                _leave(worker, members, places)

    def pick_worker(self, need: Need, *, avoid: WorkerId | None = None) -> WorkerId | None:
        """Return the better of two free workers; `avoid` only if both are."""
        members = self._members(need)
        if not members:
            return None
        place = self._draw(len(members))
        other = (place + 1 + self._draw(max(len(members) - 1, 1))) % len(members)
        drawn = [members[place], members[other]]
        drawn = [worker for worker in drawn if worker != avoid] or drawn
        return min(drawn, key=lambda worker: self._rank(self._filed[worker][0], need))

    def _members(self, need: Need) -> list[WorkerId]:
        found = self._lists.get(need)
        if found is None:
            if len(self._lists) >= _NEEDS_MOST:
                self._lists.clear()
            members = [worker for worker, (_, serves) in self._filed.items() if serves(need)]
            found = (members, {worker: place for place, worker in enumerate(members)})
            self._lists[need] = found
        return found[0]

    def _draw(self, below: int) -> int:
        """Return a number from 0 on (a linear congruential generator's, Knuth's MMIX)."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        return (self._state >> 33) % below


def _leave(worker: WorkerId, members: list[WorkerId], places: dict[WorkerId, int]) -> None:
    place = places.pop(worker, None)
    if place is not None:
        last = members.pop()
        if last != worker:
            members[place] = last
            places[last] = place
