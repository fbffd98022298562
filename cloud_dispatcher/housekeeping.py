"""What is due by the clock rather than by an event: the overview, and forgetting old jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
import structlog
from msgspec.structs import replace

from cloud_dispatcher.cloud_alerts import CloudAlerts
from cloud_dispatcher.history import History
from cloud_dispatcher.ports import CompletionProvider, JobStore, StoreUnavailableError
from cloud_dispatcher.publisher import Publisher
from fleet_protocol import messages as m
from fleet_protocol import topics

_log = structlog.get_logger(__name__)

_GIVEN_BACK_MOST_BYTES: Final = 4_194_304
"""Each time that is looked: turns wait meanwhile, and the rest has time."""
_Seconds = Annotated[int, msgspec.Meta(ge=1)]


class HousekeepingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often, and how long.

    Attributes:
        retention_s: Finished jobs stay this long: to be replayed, looked at, retried.
        dead_retention_s: The same for dead letters, which wait for a person.
        summary_every_s: How often the overview is published.
        prune_every_s: How often finished jobs beyond the retention are looked for.
        prune_batch: Most jobs forgotten at once.
    """

    retention_s: _Seconds = 7 * 86_400
    dead_retention_s: _Seconds = 30 * 86_400
    summary_every_s: _Seconds = 1
    prune_every_s: _Seconds = 60
    prune_batch: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 500


class Housekeeping:
    """Does what is due, in the service's own task.

    Attributes:
        spoken: What is told of the overview; None: another dispatcher tells it.
    """

    def __init__(
        self,
        settings: HousekeepingSettings,
        *,
        store: JobStore,
        publisher: Publisher,
        summarize: Callable[[int], m.FleetSummary],
        provider: CompletionProvider,
        history: History,
    ) -> None:
        self._settings = settings
        self._store = store
        self._publisher = publisher
        self._summarize = summarize
        self._provider = provider
        self._history = history
        self.spoken: Callable[[m.FleetSummary], m.FleetSummary | None] = lambda own: own
        self._cloud_alerts = CloudAlerts(publisher)
        self._summary_at_ms = 0
        self._prune_at_ms = 0

    @property
    def due_at_ms(self) -> int:
        """When something is due next."""
        return min(self._summary_at_ms, self._prune_at_ms)

    def announce(self) -> None:
        """Say again how the cloud stands: the broker may have forgotten its alerts."""
        self._cloud_alerts.announce()

    async def keep(self, now_ms: int) -> None:
        """Do what is due."""
        if now_ms >= self._summary_at_ms:
            self._summary_at_ms = now_ms + 1_000 * self._settings.summary_every_s
            summary = self._summarize(now_ms)
            endpoints = self._provider.endpoints
            spoken = self.spoken(replace(summary, endpoints=endpoints))
            if spoken is not None:
                self._publisher.send(topics.SUMMARY, spoken)
            self._history.note(spoken or summary)
            self._cloud_alerts.show(endpoints, now_ms)
        if now_ms >= self._prune_at_ms:
            self._prune_at_ms = now_ms + 1_000 * self._settings.prune_every_s
            await self._prune(now_ms)
            await self._sweep(now_ms)

    async def _sweep(self, now_ms: int) -> None:
        try:
            swept = await self._store.sweep_answers(until_before_ms=now_ms)
        except StoreUnavailableError as error:
            _log.warning("cache.not_swept", error=str(error), hint=error.hint)
            return
        if swept:
            _log.info("cache.swept", answers=swept)

    async def _prune(self, now_ms: int) -> None:
        settings, batch = self._settings, self._settings.prune_batch
        try:
            pruned = await self._store.prune(
                finished_before_ms=now_ms - 1_000 * settings.retention_s,
                dead_before_ms=now_ms - 1_000 * settings.dead_retention_s,
                limit=batch,
            )
        except StoreUnavailableError as error:
            _log.warning("store.not_pruned", error=str(error), hint=error.hint)
            return
        if pruned:
            _log.info("store.pruned", jobs=pruned)
        if pruned >= batch:
            self._prune_at_ms = now_ms  # more may wait; the turns in between go first
            return
        await self._give_back()

    async def _give_back(self) -> None:
        try:
            given_bytes = await self._store.give_back(most_bytes=_GIVEN_BACK_MOST_BYTES)
        except StoreUnavailableError as error:
            _log.warning("store.not_shrunk", error=str(error), hint=error.hint)
            return
        if given_bytes:
            _log.info("store.shrunk", bytes=given_bytes)
