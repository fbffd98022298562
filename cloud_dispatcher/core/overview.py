"""One overview of several dispatchers' parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from fleet_protocol.messages import FleetSummary, Quantiles


def merged(own: FleetSummary, others: Sequence[FleetSummary]) -> FleetSummary:
    """Return what all of them say together.

    Counts are added up; of latencies the longest counts, for quantiles cannot be added; endpoints
    and load are our own.
    """
    parts = (own, *others)
    return replace(
        own,
        queued=sum(part.queued for part in parts),
        delayed=sum(part.delayed for part in parts),
        inflight=sum(part.inflight for part in parts),
        escalated=sum(part.escalated for part in parts),
        workers=_sums([part.workers for part in parts]),
        busy=sum(part.busy for part in parts),
        hot=sum(part.hot for part in parts),
        tok_s=sum(part.tok_s for part in parts),
        finished=_sums([part.finished for part in parts]),
        answered_by=_sums([part.answered_by for part in parts]),
        reasons=_sums([part.reasons for part in parts]),
        degraded=_sums([part.degraded for part in parts]),
        offline=_sums([part.offline for part in parts]),
        jobs_per_s=sum(part.jobs_per_s for part in parts),
        latency_ms=Quantiles(
            p50=max(part.latency_ms.p50 for part in parts),
            p95=max(part.latency_ms.p95 for part in parts),
            p99=max(part.latency_ms.p99 for part in parts),
        ),
        cost_usd=sum(part.cost_usd for part in parts),
    )


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for part in counts for name in part)
    return {name: sum(part.get(name, 0) for part in counts) for name in names}
