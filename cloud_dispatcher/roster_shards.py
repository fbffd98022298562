"""The worker table for pages: sixteen retained shards, so that none must hear every heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final
from zlib import crc32

from cloud_dispatcher.publisher import Publisher
from fleet_protocol import topics
from fleet_protocol.messages import RosterShard, WorkerView

SHARDS: Final = 16
_EVERY_MS: Final = 1_000
_AGAIN_AFTER: Final = 4
"""Each shard is told once in so many looks, and at once where a worker came, went or drains."""

COLUMNS: Final = (
    "worker", "status", "weight", "compute", "bandwidth", "inflight", "slots", "seen_at_ms",
    "left_alone", "board", "software", "model", "measured_tok_s", "tok_s", "temp_c", "throttled",
    "cpu_pct", "mem_pct",
)  # fmt: skip


class RosterShards:
    """Tells the workers as the dispatcher knows them, by shards of their names."""

    def __init__(self, publisher: Publisher, workers: Callable[[], Sequence[WorkerView]]) -> None:
        self._publisher = publisher
        self._workers = workers
        self._look_at_ms = 0
        self._looks = 0
        self._told: dict[int, tuple[tuple[str, str], ...]] = {}

    async def keep(self, now_ms: int) -> None:
        """Tell the shards whose turn it is, and those that changed."""
        if now_ms < self._look_at_ms:
            return
        self._look_at_ms = now_ms + _EVERY_MS
        self._looks += 1
        shards: dict[int, list[WorkerView]] = {shard: [] for shard in range(SHARDS)}
        for view in self._workers():
            shards[shard_of(view.worker)].append(view)
        for shard, views in shards.items():
            presence = tuple((view.worker, view.status.value) for view in views)
            known = self._told.get(shard)
            is_due = shard % _AGAIN_AFTER == self._looks % _AGAIN_AFTER and bool(views)
            if is_due or presence != known:
                self._told[shard] = presence
                self._tell(shard, views, now_ms)

    def announce(self) -> None:
        """Say all of it again: the broker may have forgotten it."""
        self._told.clear()

    def _tell(self, shard: int, views: Sequence[WorkerView], now_ms: int) -> None:
        rows = tuple(row_of(view) for view in views)
        message = RosterShard(at_ms=now_ms, shard=shard, columns=COLUMNS, rows=rows)
        self._publisher.send(topics.ROSTER, message, str(shard))


def shard_of(worker: str) -> int:
    """Return the shard that has a worker."""
    return crc32(worker.encode()) % SHARDS


def row_of(view: WorkerView) -> tuple[Any, ...]:
    """Return a worker's row, in the order of `COLUMNS`; None where nobody knows."""
    info, state = view.info, view.state
    benchmark = None if info is None else info.benchmark
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
        info.models[0].name if info is not None and info.models else None,
        benchmark and round(benchmark.decode_tok_s, 1),
        state and round(state.tok_s, 1),
        None if state is None or state.temp_c is None else round(state.temp_c, 1),
        state and state.throttled,
        state and round(state.cpu_pct),
        state and round(state.mem_pct),
    )
