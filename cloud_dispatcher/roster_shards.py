"""The worker table for pages: sixteen retained shards, so that none must hear every heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from zlib import crc32

from cloud_dispatcher.publisher import Publisher
from fleet_protocol import topics
from fleet_protocol.messages import PresenceStatus, RosterShard, WorkerId, WorkerView

SHARDS: Final = 16
_SHARD_EVERY_MS: Final = 250
_LOOK_EVERY_MS: Final = 1_000

COLUMNS: Final = (
    "worker", "status", "weight", "compute", "bandwidth", "inflight", "slots", "seen_at_ms",
    "left_alone", "board", "software", "model", "measured_tok_s", "tok_s", "temp_c", "throttled",
    "cpu_pct", "mem_pct", "model_version",
)  # fmt: skip


class RosterShards:
    """Tells the workers as the dispatcher knows them, by shards of their names.

    Each shard is told every four seconds, one after the other: making ten thousand rows at once
    would keep jobs waiting for 40 ms. A worker that came, went or drains is told within a second.

    Args:
        publisher: Tells.
        roll: Who is there, and whether: cheap.
        view: All that is known of one; None: it is gone.
        name: Before the shard's number: with several dispatchers each tells its own workers.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        roll: Callable[[], Iterable[tuple[WorkerId, PresenceStatus]]],
        view: Callable[[WorkerId], WorkerView | None],
        name: str = "",
    ) -> None:
        self._publisher = publisher
        self._roll = roll
        self._view = view
        self._name = f"{name}-" if name else ""
        self._look_at_ms = self._shard_at_ms = 0
        self._next = 0
        self._shards: list[dict[WorkerId, PresenceStatus]] = [{} for _ in range(SHARDS)]
        self._told: set[int] = set()

    async def keep(self, now_ms: int) -> None:
        """Tell the shards whose turn it is, and those that changed."""
        due = set[int]()
        if now_ms >= self._look_at_ms:
            self._look_at_ms = now_ms + _LOOK_EVERY_MS
            due |= self._changed()
        while self._shard_at_ms <= now_ms:
            self._shard_at_ms = max(self._shard_at_ms, now_ms - 1_000) + _SHARD_EVERY_MS
            if self._shards[self._next]:
                due.add(self._next)
            self._next = (self._next + 1) % SHARDS
        for shard in sorted(due):
            self._tell(shard, now_ms)

    def announce(self) -> None:
        """Say all of it again: the broker may have forgotten it."""
        self._told.clear()

    def _changed(self) -> set[int]:
        """Look who is there; return the shards of which nobody was told that."""
        shards: list[dict[WorkerId, PresenceStatus]] = [{} for _ in range(SHARDS)]
        for worker, status in self._roll():
            shards[shard_of(worker)][worker] = status
        known, self._shards = self._shards, shards
        return {at for at in range(SHARDS) if at not in self._told or known[at] != shards[at]}

    def _tell(self, shard: int, now_ms: int) -> None:
        views = (self._view(worker) for worker in self._shards[shard])
        rows = tuple(row_of(view) for view in views if view is not None)
        message = RosterShard(at_ms=now_ms, shard=shard, columns=COLUMNS, rows=rows)
        if self._publisher.send(topics.ROSTER, message, f"{self._name}{shard}"):
            self._told.add(shard)


def shard_of(worker: str) -> int:
    """Return the shard that has a worker."""
    return crc32(worker.encode()) % SHARDS


def row_of(view: WorkerView) -> tuple[Any, ...]:
    """Return a worker's row, in the order of `COLUMNS`; None where nobody knows."""
    info, state = view.info, view.state
    benchmark = None if info is None else info.benchmark
    model = info.models[0] if info is not None and info.models else None
    return (
        view.worker,
        view.status.value,
        round(view.weight, 3),
        round(view.compute, 3),
        round(view.bandwidth, 3),
        view.inflight,
        view.slots,
        view.seen_at_ms,
        view.left_alone,
        info and info.board,
        info and info.software,
        model and model.name,
        benchmark and round(benchmark.decode_tok_s, 1),
        state and round(state.tok_s, 1),
        None if state is None or state.temp_c is None else round(state.temp_c, 1),
        state and state.throttled,
        state and round(state.cpu_pct),
        state and round(state.mem_pct),
        model and model.version,
    )
