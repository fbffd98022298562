"""When something is due: one moment a name, cheap to put off."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

_N = TypeVar("_N", bound=str)


class Alarms(Generic[_N]):
    """One due moment for each name.

    A heap with lazy invalidation. Putting a moment off, which renewing a lease does all the time,
    touches only a dict: the heap entry comes up early and is filed again then. Names that were
    cleared leave entries behind; the heap is rebuilt when these are the larger half.
    """

    def __init__(self) -> None:
        self._due: dict[_N, int] = {}
        self._filed: dict[_N, int] = {}
        self._heap: list[tuple[int, _N]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, name: _N) -> bool:
        return name in self._due

    def set(self, name: _N, at_ms: int) -> None:
        """Let `name` be due at `at_ms`, whatever it was before."""
        self._due[name] = at_ms
        filed = self._filed.get(name)
        if filed is None or at_ms < filed:
            self._filed[name] = at_ms
            heappush(self._heap, (at_ms, name))
            if len(self._heap) > 2 * len(self._due) + 1_024:
                self._rebuild()

    def clear(self, name: _N) -> None:
        """Let `name` never be due."""
        if self._due.pop(name, None) is not None:
            del self._filed[name]

    def next_at_ms(self) -> int | None:
        """Return the earliest due moment; None if nothing is due ever."""
        return self._heap[0][0] if self._settle() else None

    def take(self, now_ms: int, *, limit: int) -> list[_N]:
        """Return at most `limit` names due by now, earliest first, and clear them."""
        taken: list[_N] = []
        while len(taken) < limit and self._settle() and self._heap[0][0] <= now_ms:
            name = heappop(self._heap)[1]
            del self._due[name], self._filed[name]
            taken.append(name)
        return taken

    def _settle(self) -> bool:
        """Bring a valid entry to the top; False if there is none."""
        heap = self._heap
        while heap:
            at_ms, name = heap[0]
            if self._filed.get(name) != at_ms:
                heappop(heap)
                continue
            due_ms = self._due[name]
            if due_ms == at_ms:
                return True
            heappop(heap)
            self._filed[name] = due_ms
            heappush(heap, (due_ms, name))
        return False

    def _rebuild(self) -> None:
        self._filed = dict(self._due)
        self._heap = [(at_ms, name) for name, at_ms in self._due.items()]
        heapify(self._heap)
