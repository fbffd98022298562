"""All that `/metrics` tells, put together from those who know it."""

from __future__ import annotations

from collections.abc import Callable

from cloud_dispatcher import gauges
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.metrics import Family, FleetCounts
from cloud_dispatcher.ports import CompletionProvider
from cloud_dispatcher.service import DispatcherService
from fleet_protocol import __version__


class Scrape:
    """Answers a scrape.

    Args:
        counts: The observer that has counted since the start.
        engine: For how things stand.
        service: The same.
        provider: For the endpoints of the cloud.
        clock: UTC epoch milliseconds.
    """

    def __init__(
        self,
        counts: FleetCounts,
        *,
        engine: Engine,
        service: DispatcherService,
        provider: CompletionProvider,
        clock: Callable[[], int],
    ) -> None:
        self._counts = counts
        self._engine = engine
        self._service = service
        self._provider = provider
        self._clock = clock
        self._started_at_ms = clock()

    def families(self) -> list[Family]:
        """Return all metrics but those of single workers."""
        return [*self._counts.families(), *gauges.families(self._standing())]

    def _standing(self) -> gauges.Standing:
        engine, service = self._engine, self._service
        return gauges.Standing(
            version=__version__,
            started_at_ms=self._started_at_ms,
            connected=service.is_ready,
            engine=engine.summary(),
            endpoints=self._provider.endpoints,
            budget=engine.budgets(self._clock())[0],
            dropped=service.dropped,
            firing=service.alerts.firing,
        )
