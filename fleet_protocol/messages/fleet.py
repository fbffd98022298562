"""What the dispatcher says to everybody."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

import msgspec

from fleet_protocol.messages.words import (
    Code,
    Count,
    Id,
    InstantMs,
    Measure,
    Message,
    Note,
    Part,
    Share,
)


class DispatcherStatus(StrEnum):
    """Whether the dispatcher is there."""

    ONLINE = "online"
    OFFLINE = "offline"


class DispatcherPresence(Message, frozen=True, kw_only=True):
    """Retained; its `offline` form is the dispatcher's will.

    Attributes:
        epoch: Name of this run of the dispatcher; on a new one workers send `HeldJobs`.
        capabilities: What it takes beyond what the first release did.
    """

    status: DispatcherStatus
    epoch: Id
    since_at_ms: InstantMs = 0
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""
    capabilities: tuple[str, ...] = ()


class Quantiles(Part, frozen=True, kw_only=True):
    """Milliseconds over the last minute."""

    p50: Measure = 0.0
    p95: Measure = 0.0
    p99: Measure = 0.0


class EndpointView(Part, frozen=True, kw_only=True):
    """One endpoint of the cloud lane's chain, as an operator sees it.

    Attributes:
        model: As its last answer named it; what is asked for, before the first one.
        state: `closed` (asked), `open` (left alone) or `half_open` (one call finds out).
        code: Why it is not closed; empty if it is.
        ready_in_ms: When it may be asked again; 0: now.
        inflight: Calls being answered.
    """

    name: Annotated[str, msgspec.Meta(max_length=64)]
    model: Annotated[str, msgspec.Meta(max_length=128)]
    state: Annotated[str, msgspec.Meta(max_length=16)]
    code: Code = ""
    ready_in_ms: Count = 0
    inflight: Count = 0


class LoadView(Part, frozen=True, kw_only=True):
    """Whether there is too much to do, and what is given up for it.

    Attributes:
        step: 0: all is well; 1: low priorities are refused; 2: middling ones do with the library.
        causes: Signals that fire: `latency`, `success`, `memory`.
        refuses_below: Submissions of lower priority are refused now; 0: none is.
        spares_below: Jobs of lower priority do with the library's answer now; 0: none does.
        refused: Submissions refused as `busy` since the dispatcher started.
        shed: Accepted jobs that made way for others in a full queue since then.
        edge_p50_ms: Half of the boards' answers took longer lately; None without any.
        edge_work_p50_ms: The same without the time that the jobs waited for a board.
        success_share: Of the jobs that ended lately, who got an answer; None of too few.
        memory_pct: None where the dispatcher cannot tell.
    """

    step: Count = 0
    causes: tuple[str, ...] = ()
    refuses_below: Count = 0
    spares_below: Count = 0
    refused: Count = 0
    shed: Count = 0
    edge_p50_ms: Measure | None = None
    edge_work_p50_ms: Measure | None = None
    success_share: Share | None = None
    memory_pct: Measure | None = None


class FleetSummary(Message, frozen=True, kw_only=True):
    """Once a second, retained: the numbers of an overview page.

    Attributes:
        queued: Jobs waiting for a slot.
        delayed: Jobs that their devices want later.
        inflight: Jobs assigned or running.
        escalated: Jobs in the cloud lane now.
        workers: Number of workers by presence.
        busy: Workers that have a job.
        hot: Workers that are there and slowed down by their heat.
        tok_s: Tokens generated per second, by all workers that are there.
        finished: Final results by status since the dispatcher started.
        answered_by: `ok` results by who gave them since then.
        reasons: Escalations by reason since then.
        degraded: `ok` results that were second best, by code, since then.
        offline: Answers of the offline library by kind of match since then.
        jobs_per_s: Final results per second over the last 10 s.
        latency_ms: Receipt to result.
        cost_usd: Spent since the dispatcher started.
        endpoints: The cloud lane's chain, in order of preference.
        load: Whether there is too much to do.
    """

    at_ms: InstantMs
    queued: Count = 0
    delayed: Count = 0
    inflight: Count = 0
    escalated: Count = 0
    workers: dict[str, int] = msgspec.field(default_factory=dict)
    busy: Count = 0
    hot: Count = 0
    tok_s: Measure = 0.0
    finished: dict[str, int] = msgspec.field(default_factory=dict)
    answered_by: dict[str, int] = msgspec.field(default_factory=dict)
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    degraded: dict[str, int] = msgspec.field(default_factory=dict)
    offline: dict[str, int] = msgspec.field(default_factory=dict)
    jobs_per_s: Measure = 0.0
    latency_ms: Quantiles = msgspec.field(default_factory=Quantiles)
    cost_usd: Measure = 0.0
    endpoints: tuple[EndpointView, ...] = ()
    load: LoadView = msgspec.field(default_factory=LoadView)


class RosterShard(Message, frozen=True, kw_only=True):
    """One of 16 shards of the worker table, column by column; each re-sent every 4 s.

    Attributes:
        columns: Names; `rows` has one list a worker in the same order.
    """

    MAX_BYTES: ClassVar[int] = 1_048_576

    at_ms: InstantMs
    shard: Annotated[int, msgspec.Meta(ge=0, le=15)]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...] = ()


class FleetEvent(Part, frozen=True, kw_only=True):
    """One thing that happened, for a time line."""

    at_ms: InstantMs
    name: Annotated[str, msgspec.Meta(max_length=64)]
    worker: Id | None = None
    job: Id | None = None
    detail: Note = ""


class FleetEvents(Message, frozen=True, kw_only=True):
    """Batched, at most four a second."""

    MAX_BYTES: ClassVar[int] = 262_144

    events: tuple[FleetEvent, ...]


class Severity(StrEnum):
    """How much an alert matters."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Alert(Message, frozen=True, kw_only=True):
    """Retained while it fires; an empty payload on its topic clears it. Operators list past ones.

    Attributes:
        id: In lists as in its topic: there several dispatchers put their names before it.
        acked_by: Who said that they look after it; None: nobody yet.
        resolved_at_ms: When it was over; None: it fires.
    """

    id: Id
    severity: Severity
    title: Note
    since_at_ms: InstantMs
    detail: Note = ""
    acked_by: Id | None = None
    acked_at_ms: InstantMs | None = None
    resolved_at_ms: InstantMs | None = None
