"""The last day of the fleet's figures, so that a page that is opened now has something to draw."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from fleet_protocol.messages import AnsweredBy, FleetSummary, PresenceStatus

_FINE_MS: Final = 5_000
_FINE_MOST: Final = 720
_COARSE_MS: Final = 60_000
_COARSE_MOST: Final = 1_440


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The fleet at a moment, as a row.

    Attributes:
        at_ms: UTC epoch milliseconds.
        jobs_per_s: Final results per second over the last 10 s.
        p50_ms: Receipt to result, over the last minute.
        queued: Jobs waiting for a slot.
        inflight: Jobs under a lease.
        escalated: Jobs in the cloud lane.
        online: Workers that take jobs.
        edge: Answers of boards since the dispatcher started; so are the next three.
        cost_usd: Spent since then.
    """

    at_ms: int
    jobs_per_s: float
    p50_ms: float
    p95_ms: float
    queued: int
    inflight: int
    escalated: int
    online: int
    edge: int
    cloud: int
    cache: int
    offline: int
    cost_usd: float


COLUMNS: Final = Sample.__struct_fields__


class History:
    """Keeps a sample every five seconds for an hour, and one a minute for a day. In memory."""

    def __init__(self) -> None:
        self._fine: deque[Sample] = deque(maxlen=_FINE_MOST)
        self._coarse: deque[Sample] = deque(maxlen=_COARSE_MOST)

    def note(self, summary: FleetSummary) -> None:
        """Keep what a summary says, where it is time to."""
        for kept, every_ms in ((self._fine, _FINE_MS), (self._coarse, _COARSE_MS)):
            if not kept or summary.at_ms - kept[-1].at_ms >= every_ms:
                kept.append(_sample(summary))

    def samples(self) -> list[Sample]:
        """Return the day: a row a minute, and the last hour finer, oldest first."""
        fine_from_ms = self._fine[0].at_ms if self._fine else 0
        return [*(row for row in self._coarse if row.at_ms < fine_from_ms), *self._fine]


def _sample(summary: FleetSummary) -> Sample:
    by = summary.answered_by
    return Sample(
        at_ms=summary.at_ms,
        jobs_per_s=summary.jobs_per_s,
        p50_ms=summary.latency_ms.p50,
        p95_ms=summary.latency_ms.p95,
        queued=summary.queued,
        inflight=summary.inflight,
        escalated=summary.escalated,
        online=summary.workers.get(PresenceStatus.ONLINE, 0),
        edge=by.get(AnsweredBy.EDGE, 0),
        cloud=by.get(AnsweredBy.CLOUD, 0),
        cache=by.get(AnsweredBy.CACHE, 0),
        offline=by.get(AnsweredBy.OFFLINE, 0),
        cost_usd=summary.cost_usd,
    )
