"""Which of the workers with a free slot gets the next job."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol, TypeAlias

import msgspec

from cloud_dispatcher.core.queue import Need
from fleet_protocol.messages import WorkerId

Rank: TypeAlias = tuple[float, ...]
"""A sort key: the lowest gets the job."""

_HEAPS_MOST: Final = 64


class WorkerLoad(msgspec.Struct, frozen=True):
    """What a policy may look at.

    Attributes:
        weight: Above 0 up to 1.
        inflight: Leases the worker holds.
        turn: Number of the fleet's last lease that went to this worker; 0 before its first.
    """

    weight: float
    inflight: int
    turn: int


class Policy(Protocol):
    """Ranks workers by their own load alone, so that one change re-files one worker."""

    def rank(self, load: WorkerLoad) -> Rank:
        """Return the sort key of a free worker; equal ones are sorted by id."""
        ...


class WeightedLeastConnections:
    """The default policy: (inflight + 1) per weight, then the heavier worker.

    Source: LVS shortest expected delay, (C + 1) / U (net/netfilter/ipvs/ip_vs_sed.c). Without the
    "+ 1" all idle workers look alike and the slowest is as likely as the fastest.
    """

    def rank(self, load: WorkerLoad) -> Rank:
        """Return the sort key of a free worker."""
        return ((load.inflight + 1) / load.weight, -load.weight)


class RoundRobin:
    """Each in turn, blind to speed: what the default is measured against."""

    def rank(self, load: WorkerLoad) -> Rank:
        """Return the sort key of a free worker."""
        return (load.turn,)


_Entry: TypeAlias = tuple[Rank, WorkerId, int]
_Serves: TypeAlias = Callable[[Need], bool]


class FreeWorkers:
    """The workers with a free slot, ranked, for each kind of need.

    One heap a need with lazy invalidation: a worker whose load changed is filed anew and its old
    entry thrown away when it surfaces. Picking costs O(log workers), not O(workers).
    """

    def __init__(self) -> None:
        self._filed: dict[WorkerId, tuple[_Entry, _Serves]] = {}
        self._heaps: dict[Need, list[_Entry]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._filed)

    def file(self, worker: WorkerId, rank: Rank, serves: _Serves) -> None:
        """Let a worker be free with this rank, for the needs that it `serves`."""
        self._serial += 1
        entry, filed = (rank, worker, self._serial), self._filed
        filed[worker] = (entry, serves)
        most = 2 * len(filed) + 64
        for need, heap in self._heaps.items():
            if serves(need):
                heappush(heap, entry)
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
            heap = [entry for entry, serves in self._filed.values() if serves(need)]
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
        return filed is not None and filed[0] is entry
