"""Which of the workers with a free slot gets the next job: the interface, and how one is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol, TypeAlias

import msgspec

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.pace import Pace
from cloud_dispatcher.core.queue import Need
from fleet_protocol.messages import Usage, WorkerId

Rank: TypeAlias = tuple[float, ...]
"""A sort key: the lowest gets the job."""

_HEAPS_MOST: Final = 64


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
Ranking: TypeAlias = Callable[[WorkerLoad, Need], Rank]


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
    """Ranks workers by their own load alone, so that one change re-files one worker."""

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


_Entry: TypeAlias = tuple[Rank, WorkerId, int]


class FreeWorkers:
    """Picks the best one, for each kind of need.

    One heap a need with lazy invalidation: a worker whose load changed is filed anew and its old
    entry thrown away when it surfaces. Picking costs O(log workers), not O(workers).
    """

    def __init__(self, rank: Ranking) -> None:
        self._rank = rank
        self._filed: dict[WorkerId, tuple[int, WorkerLoad, Serves]] = {}
        self._heaps: dict[Need, list[_Entry]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._filed)

    def file(self, worker: WorkerId, load: WorkerLoad, serves: Serves) -> None:
        """Let a worker be free with this load, for the needs that it `serves`."""
        self._serial += 1
        filed = self._filed
        filed[worker] = (self._serial, load, serves)
        most = 2 * len(filed) + 64
        for need, heap in self._heaps.items():
            if serves(need):
                heappush(heap, (self._rank(load, need), worker, self._serial))
                if len(heap) > most:
                    heap[:] = [kept for kept in heap if self._is_valid(kept)]
                    heapify(heap)

    def strike(self, worker: WorkerId) -> None:
        """Let a worker not be free. Unknown ones are ignored."""
        self._filed.pop(worker, None)

    def pick_worker(self, need: Need, *, avoid: WorkerId | None = None) -> WorkerId | None:
        """Return the best free worker for a need; `avoid` only if there is no other."""
        if not self._filed:
            return None
        heap = self._heap(need)
        best = self._top(heap)
        if best is None or best[1] != avoid:
            return None if best is None else best[1]
        heappop(heap)
        other = self._top(heap)
        heappush(heap, best)
        return best[1] if other is None else other[1]

    def _heap(self, need: Need) -> list[_Entry]:
        heap = self._heaps.get(need)
        if heap is None:
            if len(self._heaps) >= _HEAPS_MOST:
                self._heaps.clear()
            heap = [
                (self._rank(load, need), worker, serial)
                for worker, (serial, load, serves) in self._filed.items()
                if serves(need)
            ]
            heapify(heap)
            self._heaps[need] = heap
        return heap

    def _top(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            if self._is_valid(heap[0]):
                return heap[0]
            heappop(heap)
        return None

    def _is_valid(self, entry: _Entry) -> bool:
        filed = self._filed.get(entry[1])
        return filed is not None and filed[0] == entry[2]


class DrawnWorkers:
    """Draws two, the better of which gets the job: the power of two choices, at O(1).

    Drawing is a plain generator's, so a run can be repeated.
    """

    def __init__(self, rank: Ranking) -> None:
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
            if len(self._lists) >= _HEAPS_MOST:
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
