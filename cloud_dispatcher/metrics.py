"""What Prometheus scrapes: counts made of (event, commands). Pure but for its own counts.

Counters run from the start of the dispatcher. What the objectives hang on exists from then on: a
rate over a series that begins with its first job would not see that job. The rest exists from the
first time it is counted, so that no label has to be known beforehand. Labels are words of the
protocol, never ids; boards name some of them, so beyond a hundred of a metric there is only
`other`. How things stand now is in `gauges`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from cloud_dispatcher.core.commands import AnyCommand, SaveJob, Send, StartCompletion
from cloud_dispatcher.core.events import (
    AnyEvent,
    CompletionFailed,
    CompletionFinished,
    FailureReceived,
    JobSubmitted,
)
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.observers import FIRST_CALLS, OTHER, WORDS_MOST, just_finished
from fleet_protocol import messages as m
from fleet_protocol import topics

Labels: TypeAlias = tuple[tuple[str, str], ...]

BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds; 1 s is the product's own limit of latency."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One metric with all its series.

    Attributes:
        kind: `counter`, `gauge` or `histogram`.
        samples: Suffix of the name, labels and value.
    """

    name: str
    kind: str
    help: str
    samples: tuple[tuple[str, Labels, float], ...]


class _Histogram:
    """Spans by bucket."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, span_ms: int) -> None:
        """Count a span."""
        span_s = span_ms / 1_000
        self._counts[bisect_left(BUCKETS_S, span_s)] += 1
        self._sum_s += span_s

    def samples(self, labels: Labels) -> Iterable[tuple[str, Labels, float]]:
        """Yield the buckets, each with all below it, then sum and count."""
        total = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            yield "_bucket", (*labels, ("le", bound)), total
        yield "_sum", labels, self._sum_s
        yield "_count", labels, total


_COUNTERS: Final[Mapping[str, str]] = {
    "edgefleet_jobs_submitted_total": "Submissions that arrived, repetitions included.",
    "edgefleet_submissions_rejected_total": "Submissions refused, by code.",
    "edgefleet_jobs_finished_total": "Jobs that got their one result.",
    "edgefleet_jobs_escalated_total": "Jobs handed to the cloud, by reason.",
    "edgefleet_jobs_degraded_total": "Answers that are not of the quality asked for, by code.",
    "edgefleet_assignments_total": "Leases given out: more than jobs where they were tried again.",
    "edgefleet_board_failures_total": "Attempts that a board could not work on, by code.",
    "edgefleet_cloud_calls_total": "Calls to the cloud that were started.",
    "edgefleet_cloud_outcomes_total": "How calls to the cloud ended; `ok` or the code.",
    "edgefleet_tokens_total": "Tokens of answers, by who answered.",
    "edgefleet_cost_usd_total": "What the cloud cost.",
}
_PLAIN: Final = (
    "edgefleet_jobs_submitted_total",
    "edgefleet_assignments_total",
    "edgefleet_cloud_calls_total",
    "edgefleet_cost_usd_total",
)
"""Those without labels."""
_NOBODY: Final = "nobody"
_UNANSWERED: Final = (m.JobStatus.FAILED, m.JobStatus.EXPIRED, m.JobStatus.CANCELLED)
_HISTOGRAMS: Final[Mapping[str, str]] = {
    "edgefleet_job_latency_seconds": "From receipt to the result, of jobs in one piece.",
    "edgefleet_first_token_seconds": "From receipt to the first token that was seen.",
    "edgefleet_queue_seconds": "From receipt to the last assignment.",
}


class FleetCounts:
    """Counts every decision. An `Observer`."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, defaultdict[Labels, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        self._spans: defaultdict[str, defaultdict[Labels, _Histogram]] = defaultdict(
            lambda: defaultdict(_Histogram)
        )
        for name in _PLAIN:
            self._counts[name][()] = 0.0
        for by in m.AnsweredBy:
            self._add("edgefleet_jobs_finished_total", 0, status=m.JobStatus.OK, answered_by=by)
        for status in _UNANSWERED:
            self._add("edgefleet_jobs_finished_total", 0, status=status, answered_by=_NOBODY)
        for who in (*map(str, m.AnsweredBy), _NOBODY):
            self._add("edgefleet_tokens_total", 0, answered_by=who)
            for name in ("edgefleet_job_latency_seconds", "edgefleet_first_token_seconds"):
                _ = self._spans[name][(("answered_by", who),)]
        _ = self._spans["edgefleet_queue_seconds"][()]

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Count one decision."""
        self._count_event(event)
        for command in commands:
            if type(command) is Send:
                self._count_message(command)
            elif type(command) is StartCompletion:
                self._add("edgefleet_cloud_calls_total")
            elif type(command) is SaveJob and command.job.status is m.JobStatus.ESCALATED:
                self._count_escalation(event, command.job)
        for job, result in just_finished(event, commands, now_ms):
            self._count_result(job, result)

    def families(self) -> list[Family]:
        """Return all that is counted."""
        families = [
            Family(
                name=name,
                kind="counter",
                help=text,
                samples=tuple(
                    ("", labels, value) for labels, value in sorted(self._counts[name].items())
                ),
            )
            for name, text in _COUNTERS.items()
        ]
        for name, text in _HISTOGRAMS.items():
            spans = sorted(self._spans[name].items(), key=lambda item: item[0])
            samples = tuple(s for labels, found in spans for s in found.samples(labels))
            families.append(Family(name=name, kind="histogram", help=text, samples=samples))
        return families

    def _count_event(self, event: AnyEvent) -> None:
        if type(event) is JobSubmitted:
            self._add("edgefleet_jobs_submitted_total")
        elif type(event) is FailureReceived:
            self._add("edgefleet_board_failures_total", code=event.failure.code)
        elif type(event) is CompletionFinished:
            self._add("edgefleet_cloud_outcomes_total", provider=event.provider, code="ok")
        elif type(event) is CompletionFailed:
            self._add("edgefleet_cloud_outcomes_total", provider="", code=event.code)

    def _count_message(self, send: Send) -> None:
        message = send.message
        if send.channel is topics.ASSIGN:
            self._add("edgefleet_assignments_total")
        elif type(message) is m.JobAck and message.status is m.AckStatus.REJECTED:
            self._add("edgefleet_submissions_rejected_total", code=message.code)

    def _count_escalation(self, event: AnyEvent, job: Job) -> None:
        if type(event) in FIRST_CALLS:
            self._add("edgefleet_jobs_escalated_total", reason=job.reason or "unknown")

    def _count_result(self, job: Job, result: m.JobResult) -> None:
        """A part is no job of its own; what a job in parts took, its parts took."""
        by = str(result.answered_by or _NOBODY)
        if not job.parts:
            tokens = result.usage.completion_tokens
            self._add("edgefleet_tokens_total", tokens, answered_by=by)
            self._add("edgefleet_cost_usd_total", result.cost_usd)
        if job.part is not None:
            return
        self._add("edgefleet_jobs_finished_total", status=result.status, answered_by=by)
        if result.degraded:
            self._add("edgefleet_jobs_degraded_total", code=result.code or "unknown")
        if not job.parts:
            spans, labels = result.timing_ms, (("answered_by", by),)
            self._spans["edgefleet_job_latency_seconds"][labels].add(spans.total)
            if spans.first_token is not None:
                self._spans["edgefleet_first_token_seconds"][labels].add(spans.first_token)
            if spans.queued is not None:
                self._spans["edgefleet_queue_seconds"][()].add(spans.queued)

    def _add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        counts = self._counts[name]
        series = tuple((key, str(word)) for key, word in labels.items())
        if series not in counts and len(counts) >= WORDS_MOST:
            series = tuple((key, OTHER) for key in labels)
        counts[series] += amount
