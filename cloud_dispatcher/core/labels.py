"""Labels: what only some boards have, and who of those that have it is free."""

from __future__ import annotations

from collections.abc import Callable, KeysView, Mapping

from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import Pool, Serves, WorkerLoad
from fleet_protocol.messages import WorkerId


def names_of(labels: Mapping[str, str]) -> frozenset[str]:
    """Return by what names a board's labels may be asked for: `site`, and `site=north`."""
    return frozenset(labels) | {f"{name}={value}" for name, value in labels.items() if value}


class LabelledPools:
    """The workers with a free slot: all of them, and apart those with each label in demand.

    A pool for each label, so that a pick among a few boards does not look at all others, and a
    board whose load changed is filed anew only where it belongs: O(log workers), however many
    labels a fleet has.
    """

    def __init__(self, pool: Callable[[], Pool]) -> None:
        self._new_pool = pool
        self._all = pool()
        self._pools: dict[str, Pool] = {}
        self._counts: dict[str, int] = {}
        # Of workers with labels alone.
        self._filed: dict[WorkerId, tuple[WorkerLoad, Serves, frozenset[str]]] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def labels(self) -> KeysView[str]:
        """The labels of free workers."""
        return self._counts.keys()

    def file(
        self, worker: WorkerId, load: WorkerLoad, serves: Serves, labels: frozenset[str]
    ) -> None:
        """Let a worker be free with this load, for the needs that it `serves`."""
        self._all.file(worker, load, serves)
        if not labels and worker not in self._filed:
            return
        before = self._filed.get(worker)
        if before is None or before[2] != labels:
            self._strike(worker)
            for label in labels:
                self._counts[label] = self._counts.get(label, 0) + 1
        if labels:
            self._filed[worker] = (load, serves, labels)
        for label in labels & self._pools.keys():
            self._pools[label].file(worker, load, serves)

    def strike(self, worker: WorkerId) -> None:
        """Let a worker not be free. Unknown ones are ignored."""
        self._all.strike(worker)
        self._strike(worker)

    def pick_worker(self, need: Need, *, avoid: WorkerId | None = None) -> WorkerId | None:
        """Return the one that gets the job; `avoid` only if there is no other."""
        pool = self._all if need.label is None else self._pool(need.label)
        return pool.pick_worker(need, avoid=avoid)

    def _strike(self, worker: WorkerId) -> None:
        filed = self._filed.pop(worker, None)
        for label in () if filed is None else filed[2]:
            left = self._counts.pop(label) - 1
            if left:
                self._counts[label] = left
            if label in self._pools:
                self._pools[label].strike(worker)

    def _pool(self, label: str) -> Pool:
        pool = self._pools.get(label)
        if pool is None:
            pool = self._pools[label] = self._new_pool()
            for worker, (load, serves, labels) in self._filed.items():
                if label in labels:
                    pool.file(worker, load, serves)
        return pool
