"""What runs are worth, in figures, and how sure these are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from cloud_dispatcher.simulation.world import Outcome

TAIL: Final = tuple(10 ** (-step / 8) for step in range(1, 25))
"""Shares of the jobs that take longest, from three quarters to one in a thousand."""

_STUDENT: Final = (
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % point of Student's distribution for 1, 2, ... 30 degrees of freedom."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Spans are from submission to answer; without one, at least until the deadline.

    Attributes:
        in_time: Share of the jobs that were answered by their deadline.
        busy: Slots in use over all slots.
        fairness: Jain's index of the devices' mean spans: 1 if all wait the same, down to one over
            their number.
        attempts: Leases a job took.
        tail_ms: Spans that the `TAIL` shares of the jobs exceed.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    in_time: float
    busy: float
    fairness: float
    attempts: float
    tail_ms: tuple[float, ...] = ()


class Estimate(msgspec.Struct, frozen=True):
    """A mean over seeds, with its 95 % interval (Student's)."""

    mean: float
    low: float
    high: float


def figures_of(outcome: Outcome, *, warm_up: float) -> Figures:
    """Return a run's figures, without the first jobs."""
    endings = outcome.endings[int(warm_up * len(outcome.endings)) :]
    spans = sorted(ending.span_ms for ending in endings)
    by_device: dict[int, list[int]] = {}
    for ending in endings:
        by_device.setdefault(ending.device, []).append(ending.span_ms)
    return Figures(
        p50_ms=quantile(spans, 0.50),
        p95_ms=quantile(spans, 0.95),
        p99_ms=quantile(spans, 0.99),
        in_time=sum(ending.in_time for ending in endings) / len(endings),
        busy=outcome.busy,
        fairness=jain([statistics.fmean(waits) for waits in by_device.values()]),
        attempts=statistics.fmean(ending.attempts for ending in endings),
        tail_ms=tuple(quantile(spans, 1.0 - share) for share in TAIL),
    )


def quantile(ordered: Sequence[int], share: float) -> float:
    """Return the least value that at least `share` of the values do not exceed."""
    return float(ordered[max(math.ceil(share * len(ordered)) - 1, 0)])


def jain(values: Sequence[float]) -> float:
    """Return the square of the sum over the number times the sum of squares (R. Jain, 1984)."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with its interval; of one value the interval is that value."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, mean, mean)
    student = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96
    half = student * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return how many times `others` the values are: the geometric mean over pairs."""
    pairs = zip(values, others, strict=True)
    logs = estimate([math.log(max(value, 1e-9) / max(other, 1e-9)) for value, other in pairs])
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))
