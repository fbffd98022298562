"""Who watches the decisions: the canonical log line of each job, and the fleet's figures.

Everything here is derived from (event, commands) alone, so a further observer sees all there is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import msgspec

from cloud_dispatcher.core.commands import AnyCommand, SaveJob
from cloud_dispatcher.core.engine import EngineSummary
from cloud_dispatcher.core.events import (
    AdminAsked,
    AnyEvent,
    EscalationReceived,
    JobSubmitted,
    ResultConfirmed,
    ResultRefused,
)
from cloud_dispatcher.core.job import Job
from fleet_protocol import messages as m
from fleet_protocol.log import log_often

FIRST_CALLS: Final = frozenset({JobSubmitted, EscalationReceived, AdminAsked})
"""Events that send a job to the cloud lane; later calls for it are repetitions."""
WORDS_MOST: Final = 100
"""Different words that are counted apart: boards make up codes, and each would be kept for ever."""
OTHER: Final = "other"
_TELLING: Final = frozenset({ResultConfirmed, ResultRefused})
"""Events about a result that was there before."""
_LATENCIES_MAX: Final = 4_096
_LATENCY_WINDOW_MS: Final = 60_000
_RATE_WINDOW_S: Final = 10


def just_finished(
    event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int
) -> Sequence[tuple[Job, m.JobResult]]:
    """Return the jobs that got their one result by this decision."""
    finished: list[tuple[Job, m.JobResult]] = []
    if type(event) in _TELLING:
        return finished
    for command in commands:
        if type(command) is SaveJob:
            job = command.job
            result = job.result
            if result is not None and job.finished_at_ms == now_ms and not job.told:
                finished.append((job, result))
    return finished


class FinishedLine(msgspec.Struct, kw_only=True):
    """The keys of `job.finished`."""

    job: str
    part_of: str | None
    parts: int
    device: str
    id: str
    status: str
    answered_by: str | None
    reason: str | None
    code: str
    degraded: bool
    offline: str | None
    entry: str | None
    worker: str | None
    model: str | None
    attempt: int
    prompt_chars: int
    answer_chars: int
    confidence: float | None
    queued_ms: int | None
    first_token_ms: int | None
    total_ms: int | None
    cost_usd: float


class JobLog:
    """Writes `job.finished`: one line a job that says everything but its texts."""

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Log the jobs that just finished."""
        for job, result in just_finished(event, commands, now_ms):
            line = FinishedLine(
                job=job.key,
                part_of=None if job.part is None else job.part.job,
                parts=job.parts,
                device=job.device,
                id=job.id,
                status=str(result.status),
                answered_by=result.answered_by and str(result.answered_by),
                reason=result.reason and str(result.reason),
                code=result.code,
                degraded=result.degraded,
                offline=None if result.offline is None else result.offline.kind,
                entry=None if result.offline is None else result.offline.entry,
                worker=result.worker,
                model=result.model,
                attempt=job.attempt,
                prompt_chars=job.submit.prompt_chars,
                answer_chars=len(result.text),
                confidence=None if result.confidence is None else round(result.confidence, 4),
                queued_ms=result.timing_ms.queued,
                first_token_ms=result.timing_ms.first_token,
                total_ms=result.timing_ms.total,
                cost_usd=round(result.cost_usd, 9),
            )
            log_often("job.finished", line)


class FleetFigures:
    """Counts what the overview shows. Counters run from the start of the dispatcher."""

    def __init__(self) -> None:
        self._finished: Counter[str] = Counter()
        self._answered_by: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._degraded: Counter[str] = Counter()
        self._offline: Counter[str] = Counter()
        self._cost_usd = 0.0
        self._latencies: deque[tuple[int, int]] = deque(maxlen=_LATENCIES_MAX)
        self._per_s: deque[list[int]] = deque(maxlen=_RATE_WINDOW_S + 1)

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Count one decision."""
        if type(event) in FIRST_CALLS:
            for command in commands:
                if type(command) is SaveJob and command.job.status is m.JobStatus.ESCALATED:
                    self._reasons[command.job.reason or "unknown"] += 1
        for job, result in just_finished(event, commands, now_ms):
            if not job.parts:  # The cost of a job in parts is what its parts cost.
                self._cost_usd += result.cost_usd
            if job.part is None:
                self._finish(job, result, now_ms)

    def summary(self, now_ms: int, now: EngineSummary) -> m.FleetSummary:
        """Return the overview."""
        return m.FleetSummary(
            at_ms=now_ms,
            queued=now.queued,
            delayed=now.delayed,
            inflight=now.inflight,
            escalated=now.escalated,
            workers=now.workers,
            busy=now.busy,
            hot=now.hot,
            tok_s=round(now.tok_s, 1),
            finished=dict(self._finished),
            answered_by=dict(self._answered_by),
            reasons=dict(self._reasons),
            degraded=dict(self._degraded),
            offline=dict(self._offline),
            jobs_per_s=self._rate(now_ms),
            latency_ms=self._quantiles(now_ms),
            cost_usd=self._cost_usd,
            load=now.load,
        )

    def _finish(self, job: Job, result: m.JobResult, now_ms: int) -> None:
        self._finished[result.status] += 1
        if result.status is m.JobStatus.OK and result.answered_by is not None:
            self._answered_by[result.answered_by] += 1
        if result.degraded:
            code = result.code or "unknown"
            is_apart = code in self._degraded or len(self._degraded) < WORDS_MOST
            self._degraded[code if is_apart else OTHER] += 1
        if result.offline is not None:
            self._offline[result.offline.kind] += 1
        self._latencies.append((now_ms, now_ms - job.received_at_ms))
        second = now_ms // 1_000
        if self._per_s and self._per_s[-1][0] == second:
            self._per_s[-1][1] += 1
        else:
            self._per_s.append([second, 1])

    def _rate(self, now_ms: int) -> float:
        """Over whole seconds: the one that is not over yet would bend the figure."""
        second = now_ms // 1_000
        recent = (n for at_s, n in self._per_s if second - _RATE_WINDOW_S <= at_s < second)
        return sum(recent) / _RATE_WINDOW_S

    def _quantiles(self, now_ms: int) -> m.Quantiles:
        """Of the newest finished jobs of the last minute."""
        since_ms = now_ms - _LATENCY_WINDOW_MS
        spans = sorted([span for at_ms, span in self._latencies if at_ms >= since_ms])
        if not spans:
            return m.Quantiles()
        last = len(spans) - 1
        p50, p95, p99 = (float(spans[round(share * last)]) for share in (0.5, 0.95, 0.99))
        return m.Quantiles(p50=p50, p95=p95, p99=p99)
