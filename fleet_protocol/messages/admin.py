"""What those who look after a fleet ask of the dispatcher, and what it says."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec

from fleet_protocol.messages.fleet import Alert, EndpointView
from fleet_protocol.messages.jobs import AnsweredBy, JobResult, JobStatus, JobSubmit
from fleet_protocol.messages.words import (
    TEXT_MAX_CHARS,
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
from fleet_protocol.messages.workers import PresenceStatus, WorkerInfo, WorkerState


class AdminOp(StrEnum):
    """What an operator can ask of the dispatcher."""

    JOBS_LIST = "jobs.ls"
    JOB_SHOW = "jobs.show"
    JOB_CANCEL = "jobs.cancel"
    JOB_RETRY = "jobs.retry"
    JOB_PURGE = "jobs.purge"
    WORKERS_LIST = "workers.ls"
    WORKER_SHOW = "workers.show"
    WORKER_DRAIN = "workers.drain"
    WORKER_RESUME = "workers.resume"
    WORKER_RELOAD = "workers.reload"
    COSTS = "costs"
    CACHE_STATS = "cache.stats"
    CACHE_CLEAR = "cache.clear"
    CACHE_PREWARM = "cache.prewarm"
    CACHE_ASK_AGAIN = "cache.ask-again"
    ALERTS_LIST = "alerts.ls"
    ALERT_ACK = "alerts.ack"


class PrewarmAnswer(Part, frozen=True, kw_only=True, omit_defaults=True):
    """An answer that is to be given before anybody asked.

    Attributes:
        submit: The question as a device would ask it.
        model: What answered it; empty: a person.
    """

    submit: JobSubmit
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX_CHARS)]
    model: Annotated[str, msgspec.Meta(max_length=128)] = ""


class AdminRequest(Message, frozen=True, kw_only=True):
    """An operator's request.

    Attributes:
        req: Names the request; the reply carries it.
        job: A job key, for the `jobs.*` operations on one job.
        worker: A worker id, for the `workers.*` operations on one worker. Filter of `jobs.ls`: it
            has the job, or answered it.
        alert: The name of an alert, for `alerts.ack`.
        device: Filter of `jobs.ls`, as are those that follow.
        status: Where the job stands.
        dead: Only dead letters.
        route: What answered the job, or has it now.
        code: Why there is no answer, why it is degraded, or why the job left its board.
        text: A part of the device's id for the job or of its key, in small letters or capitals.
        of_tenant: Jobs of this tenant's devices.
        since_ms: Taken in then or later.
        until_ms: Taken in before then.
        jobs: Only these, by their keys; no other filter counts.
        before: Only those older than this one: the `go_on` of the page before.
        after: Only those newer, the ones next to it; likewise where no `before` is named. Of
            `workers.ls`: only those whose names come after this one.
        limit: Most rows to return; of `workers.ls` fewer may come. Of `cache.ask-again`: most
            questions to ask.
        days: UTC days that `costs` goes back, today included.
        answers: What `cache.prewarm` puts into the answer cache.
        tenant: Whose questions these are.
    """

    MAX_BYTES: ClassVar[int] = 524_288

    req: Id
    op: AdminOp
    job: Id | None = None
    worker: Id | None = None
    alert: Id | None = None
    device: Id | None = None
    status: JobStatus | None = None
    dead: bool = False
    route: AnsweredBy | None = None
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=36)] | None = None
    of_tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    since_ms: InstantMs | None = None
    until_ms: InstantMs | None = None
    jobs: Annotated[tuple[Id, ...], msgspec.Meta(max_length=1_000)] = ()
    before: Id | None = None
    after: Id | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 50
    days: Annotated[int, msgspec.Meta(ge=1, le=366)] = 7
    answers: Annotated[tuple[PrewarmAnswer, ...], msgspec.Meta(max_length=1_000)] = ()
    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "default"


class PastAttempt(Part, frozen=True, kw_only=True, omit_defaults=True):
    """A lease or a call of the cloud that ended, and the job had no result by it.

    Attributes:
        worker: Who held the lease; None: it was a call of the cloud.
        began_at_ms: When the lease was given out; None for a call of the cloud.
        code: Why it ended: a `Reason`, or the name of a mistake.
    """

    attempt: Count
    ended_at_ms: InstantMs
    code: Code
    worker: Id | None = None
    began_at_ms: InstantMs | None = None


class JobView(Part, frozen=True, kw_only=True):
    """A job as an operator sees it: everything but the prompt.

    Attributes:
        dead: It failed for good and can be inspected and retried.
        parts: Jobs made so far to answer it in parts: `{job}-0`, `{job}-1`, ...
        part_of: The job whose part it is.
        assigned_at_ms: When the last lease was given out; None: no board had it.
        past: Attempts before the last one, the latest of them: at most sixteen. Not in lists.
    """

    job: Id
    device: Id
    id: Id
    status: JobStatus
    priority: int
    prompt_chars: Count
    received_at_ms: InstantMs
    finished_at_ms: InstantMs | None = None
    deadline_at_ms: InstantMs | None = None
    attempts: Count = 0
    worker: Id | None = None
    dead: bool = False
    parts: Count = 0
    part_of: Id | None = None
    assigned_at_ms: InstantMs | None = None
    past: tuple[PastAttempt, ...] = ()
    result: JobResult | None = None


class WorkerView(Part, frozen=True, kw_only=True):
    """A worker as an operator sees it.

    Attributes:
        weight: 0.6 x compute + 0.4 x bandwidth with the default coefficients.
        compute: Measured decode tokens/s over the reference board's, clipped to 0..1.
        bandwidth: Measured Mbit/s over the reference link's, clipped to 0..1.
        inflight: The dispatcher's own count of leases.
        left_alone: It failed again and again: it gets no job for a while.
    """

    worker: Id
    status: PresenceStatus
    weight: Share
    compute: Share
    bandwidth: Share
    inflight: Count
    slots: Count
    seen_at_ms: InstantMs | None = None
    info: WorkerInfo | None = None
    state: WorkerState | None = None
    left_alone: bool = False


class CostRow(Part, frozen=True, kw_only=True):
    """What the cloud cost on one day, for one tenant, reason and model.

    Attributes:
        day: UTC, as 2026-11-22.
        tenant: `default` for devices of no tenant.
        reason: Why the jobs were in the cloud.
        provider: Empty for calls that cost something and failed.
        calls: Answered, or failed and paid all the same.
        key: Name of the gateway's key with which the jobs came; empty: they came without one.
    """

    day: Annotated[str, msgspec.Meta(max_length=10)]
    tenant: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Annotated[str, msgspec.Meta(max_length=64)]
    provider: Annotated[str, msgspec.Meta(max_length=64)]
    model: Annotated[str, msgspec.Meta(max_length=128)]
    calls: Count
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    completion_tokens: Count = 0
    cost_usd: Measure = 0.0
    key: Annotated[str, msgspec.Meta(max_length=64)] = ""


class BudgetView(Part, frozen=True, kw_only=True):
    """A budget of today (UTC).

    Attributes:
        tenant: Empty: all together.
        daily_usd: None: no limit.
        key: Not empty: that of a key of the gateway, beside its tenant's.
    """

    tenant: Annotated[str, msgspec.Meta(max_length=64)]
    spent_usd: Measure
    daily_usd: Measure | None = None
    key: Annotated[str, msgspec.Meta(max_length=64)] = ""


class CacheRow(Part, frozen=True, kw_only=True):
    """One tenant's answers in the dispatcher's store.

    Attributes:
        hits: How often those that are there were given.
    """

    tenant: Annotated[str, msgspec.Meta(max_length=64)]
    answers: Count
    size_bytes: Count
    hits: Count


class CacheView(Part, frozen=True, kw_only=True):
    """The dispatcher's answer cache.

    Attributes:
        given: Answers given since the dispatcher started, to equal questions at the same time too.
        in_memory: Of the stored answers, those that need no look into the store.
    """

    tenants: tuple[CacheRow, ...]
    given: Count
    in_memory: Count
    memory_bytes: Count


class AdminReply(Message, frozen=True, kw_only=True):
    """The answer to an `AdminRequest`.

    Attributes:
        code: Empty when `ok`.
        message: For people: what happened and what to do next.
        kept: Of each of the request's `answers`, whether it was; others no job would be given.
        members: So many dispatchers answer this request, each for its own part; 0: only this one.
        go_on: Of `jobs.ls`: where the looking ended while there may be more, also where fewer than
            `limit` were found: as `before`, or `after`, it goes on. Of `workers.ls`: the last name,
            as `after` it goes on. None: that was all.
    """

    MAX_BYTES: ClassVar[int] = 4_194_304

    req: Id
    ok: bool
    code: Code = ""
    message: Note = ""
    jobs: tuple[JobView, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    costs: tuple[CostRow, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    endpoints: tuple[EndpointView, ...] = ()
    cache: CacheView | None = None
    kept: tuple[bool, ...] = ()
    members: Count = 0
    go_on: Id | None = None
    alerts: tuple[Alert, ...] = ()
