"""Every message that crosses the broker, as frozen structs.

A field that says nothing of its unit has none. Instants are UTC epoch milliseconds and end in
`_at_ms`; spans end in `_ms`. Spans, never instants, cross between machines where a decision hangs
on them: a board may have no clock worth trusting.

Receivers ignore fields they do not know and reject messages that lack a required one, so fields
may be added within a version. `topics.py` says which message travels where.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, NewType

import msgspec

PROTOCOL_VERSION = 1

DeviceId = NewType("DeviceId", str)
WorkerId = NewType("WorkerId", str)
JobId = NewType("JobId", str)
"""The device's own name for a job; unique for that device."""
JobKey = NewType("JobKey", str)
"""The dispatcher's name for a job (a ULID): unique in the fleet, sortable by time."""

# `$` alone would let one newline follow; `\Z` is not for the JSON Schema this ends up in.
ID_PATTERN = r"^[A-Za-z0-9_-]{1,36}$(?!\n)"
PROMPT_MAX_CHARS = 1_000_000
TEXT_MAX_CHARS = 1_000_000

Id = Annotated[str, msgspec.Meta(pattern=ID_PATTERN)]
Code = Annotated[str, msgspec.Meta(max_length=64)]
Note = Annotated[str, msgspec.Meta(max_length=2_000)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX_CHARS)]
Count = Annotated[int, msgspec.Meta(ge=0)]
SpanMs = Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400_000)]
InstantMs = Annotated[int, msgspec.Meta(ge=0)]
Attempt = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Measure = Annotated[float, msgspec.Meta(ge=0.0)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all top-level messages. `v` is the protocol version the sender speaks."""

    MAX_BYTES: ClassVar[int] = 16_384

    v: int = PROTOCOL_VERSION


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the structs that live inside messages."""


# ---------------------------------------------------------------- jobs, as devices see them


class Escalate(StrEnum):
    """Whether a job may be answered by the cloud."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Privacy(StrEnum):
    """Where a prompt may travel. A `site` job never leaves the site's own boards."""

    ANY = "any"
    SITE = "site"


class JobStatus(StrEnum):
    """The life of a job; the last four are final."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    ESCALATED = "escalated"
    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job has its one result."""
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset({JobStatus.OK, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})


class AnsweredBy(StrEnum):
    """Which rung of the ladder gave the answer."""

    EDGE = "edge"
    CLOUD = "cloud"
    CACHE = "cache"
    OFFLINE = "offline"


class Reason(StrEnum):
    """Why a job left the board it was assigned to, or never reached one."""

    REQUESTED = "requested"
    TOO_LONG = "too_long"
    COMPLEX = "complex"
    LOW_CONFIDENCE = "low_confidence"
    UNSUPPORTED = "unsupported"
    OVERHEATED = "overheated"
    LOCAL_ERROR = "local_error"


class ChatRole(StrEnum):
    """Who said a chat message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class ChatMessage(Part, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: ChatRole
    content: Annotated[str, msgspec.Meta(max_length=PROMPT_MAX_CHARS)]


class Generation(Part, frozen=True, kw_only=True, omit_defaults=True):
    """How the answer is to be produced.

    Attributes:
        max_tokens: Most tokens to generate, 1..4096.
        temperature: 0 is greedy; up to 2.
        top_p: Nucleus mass, above 0 up to 1.
        seed: Makes sampling above temperature 0 repeatable.
        stop: Texts that end the answer; they are not part of it.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 64
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    stop: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...],
        msgspec.Meta(max_length=8),
    ] = ()


class JobSubmit(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A device asks. Exactly one of `prompt` and `messages` must be given.

    Attributes:
        prompt: What to answer, as one user turn.
        messages: A conversation instead, oldest first.
        model: Name of the model to use; None takes the fleet's default.
        max_tokens: See `Generation`; so are temperature, top_p, seed and stop.
        stream: Send `TokenChunk`s while the answer grows.
        escalate: Whether the cloud may answer.
        privacy: Whether the prompt may leave the site.
        priority: 0 (first to be shed) .. 9 (first to be served).
        deadline_ms: Span from receipt after which the answer is worthless; None: no limit of
            the device's own, the dispatcher's default applies.
        compact: Answer with `CompactResult`, for devices with small buffers.
    """

    MAX_BYTES: ClassVar[int] = 262_144

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=PROMPT_MAX_CHARS)] | None = None
    messages: (
        Annotated[tuple[ChatMessage, ...], msgspec.Meta(min_length=1, max_length=256)] | None
    ) = None
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 64
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    stop: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...],
        msgspec.Meta(max_length=8),
    ] = ()
    stream: bool = False
    escalate: Escalate = Escalate.AUTO
    privacy: Privacy = Privacy.ANY
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400_000)] | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of `prompt` and `messages`")

    @property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """The turns to answer, whichever way they were given."""
        if self.messages is not None:
            return self.messages
        return (ChatMessage(role=ChatRole.USER, content=self.prompt or ""),)

    @property
    def prompt_chars(self) -> int:
        """Length of everything the device said; what logs show instead of the prompt."""
        if self.prompt is not None:
            return len(self.prompt)
        return sum(len(turn.content) for turn in self.conversation)

    @property
    def generation(self) -> Generation:
        """How the answer is to be produced."""
        return Generation(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop,
        )


class JobCancel(Message, frozen=True, kw_only=True):
    """A device no longer wants the answer."""


class AckStatus(StrEnum):
    """What became of a submission."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class JobAck(Message, frozen=True, kw_only=True):
    """The dispatcher's word on a submission: stored for good, or refused and why.

    Attributes:
        position: Jobs ahead in the queue when this one was accepted.
        code: Empty when accepted; else `busy`, `malformed`, `unknown_model`, ...
        message: For people: what to do next.
        retry_after_ms: When `busy`: wait this long before the same submission again.
    """

    status: AckStatus
    position: Count = 0
    code: Code = ""
    message: Note = ""
    retry_after_ms: SpanMs = 0


class TokenChunk(Message, frozen=True, kw_only=True):
    """A piece of a growing answer, to a device. Gaps are legal: the result is complete.

    Attributes:
        i: Number of the chunk within the attempt, from 0. A chunk with `i` = 0 starts over: what
            was shown before came from an attempt that was given up.
        t: The text to append.
    """

    i: Count
    t: Annotated[str, msgspec.Meta(max_length=65_536)]


class Usage(Part, frozen=True, kw_only=True):
    """Tokens an answer took.

    Attributes:
        cached_tokens: Of `prompt_tokens`, those served from a cache (a provider bills them less).
    """

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cached_tokens: Count = 0


class TimingMs(Part, frozen=True, kw_only=True):
    """Where a job's time went, in milliseconds; None where the step did not happen.

    Attributes:
        queued: From receipt by the dispatcher to the last assignment.
        first_token: From receipt to the first token the dispatcher saw.
        total: From receipt to the result.
    """

    queued: Count | None = None
    first_token: Count | None = None
    total: Count = 0


class JobResult(Message, frozen=True, kw_only=True):
    """The one final word on a job.

    Attributes:
        id: The device's own job id.
        reason: Why it was escalated or degraded; None if it simply was answered where assigned.
        code: When not `ok`: a stable name of what went wrong.
        message: When not `ok` or `degraded`: for people.
        confidence: Of the edge model, 0..1; None where there is none.
        degraded: The answer is not of the quality that was asked for.
        simulated: The provider was a simulator: the text means nothing.
        attempts: How many times the job was assigned.
    """

    MAX_BYTES: ClassVar[int] = 4_194_304

    id: Id
    status: JobStatus
    text: Text = ""
    answered_by: AnsweredBy | None = None
    reason: Reason | None = None
    code: Code = ""
    message: Note = ""
    worker: Id | None = None
    model: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    confidence: Share | None = None
    degraded: bool = False
    simulated: bool = False
    attempts: Count = 0
    usage: Usage = msgspec.field(default_factory=Usage)
    cost_usd: Measure = 0.0
    timing_ms: TimingMs = msgspec.field(default_factory=TimingMs)


class CompactResult(Message, frozen=True, kw_only=True, omit_defaults=True):
    """`JobResult` for devices whose packet buffer is 256 bytes: the answer and who gave it."""

    MAX_BYTES: ClassVar[int] = 4_194_304

    id: Id
    status: JobStatus
    text: Text = ""
    answered_by: AnsweredBy | None = None
    code: Code = ""


class PlainText(Message, frozen=True, kw_only=True):
    """The hello-world profile: the payload is the text itself, no JSON around it."""

    MAX_BYTES: ClassVar[int] = 4_194_304

    text: Text


# ---------------------------------------------------------------- workers


class PresenceStatus(StrEnum):
    """Whether a worker takes jobs."""

    ONLINE = "online"
    OFFLINE = "offline"
    DRAINING = "draining"


class Presence(Message, frozen=True, kw_only=True):
    """Retained; its `offline` form is the worker's will.

    Attributes:
        boot: Name of this run of the worker. A will of an earlier run changes nothing.
        since_at_ms: By the worker's own clock.
    """

    status: PresenceStatus
    boot: Id
    since_at_ms: InstantMs = 0


class ModelInfo(Part, frozen=True, kw_only=True):
    """A model a worker can answer with.

    Attributes:
        context_tokens: Most tokens of prompt and answer together on this worker.
        sha256: Of the model graph file, hex; tells builds of one version apart.
    """

    name: Annotated[str, msgspec.Meta(max_length=128)]
    version: Annotated[str, msgspec.Meta(max_length=64)]
    context_tokens: Annotated[int, msgspec.Meta(ge=1)]
    sha256: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Benchmark(Part, frozen=True, kw_only=True):
    """What the worker measured of itself; the dispatcher turns it into a weight.

    Attributes:
        decode_tok_s: Tokens generated per second, one request alone.
        prefill_tok_s: Prompt tokens read per second.
        bandwidth_mbps: Payload megabits per second, worker to dispatcher and back; None until
            it was measured.
        measured_at_ms: By the worker's own clock.
    """

    decode_tok_s: Measure
    prefill_tok_s: Measure
    bandwidth_mbps: Measure | None = None
    measured_at_ms: InstantMs = 0


class WorkerInfo(Message, frozen=True, kw_only=True):
    """Retained: what a worker is and can do.

    Attributes:
        slots: Jobs it answers at once.
        prefetch: Jobs it holds beyond that, so that no slot waits for the network.
        labels: Operator's own names, for affinity.
    """

    boot: Id
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""
    board: Annotated[str, msgspec.Meta(max_length=128)] = ""
    cpu: Annotated[str, msgspec.Meta(max_length=128)] = ""
    cores: Count = 0
    memory_mb: Count = 0
    slots: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    prefetch: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    models: tuple[ModelInfo, ...] = ()
    benchmark: Benchmark | None = None
    capabilities: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Activity(StrEnum):
    """What a worker is doing."""

    IDLE = "idle"
    BUSY = "busy"
    HOT = "hot"


class WorkerState(Message, frozen=True, kw_only=True):
    """The heartbeat, every 5 s, QoS 0.

    Attributes:
        ts: UTC epoch milliseconds by the worker's own clock; only for people.
        seq: Counts up from 0 within a boot.
        temp_c: Degrees Celsius; None where the host has no sensor.
        throttled: The host's firmware holds the clock down now; None where it cannot say.
        tok_s: Tokens generated per second over the last interval, all requests together.
    """

    ts: InstantMs
    seq: Count
    status: Activity
    cpu_pct: Measure
    mem_pct: Measure
    inflight: Count
    tok_s: Measure = 0.0
    temp_c: float | None = None
    throttled: bool | None = None


class Assignment(Message, frozen=True, kw_only=True):
    """A job for this worker, under a lease.

    Attributes:
        attempt: The fencing token: everything said about the job must carry it.
        lease_ms: The worker must be heard of within this span, again and again.
        deadline_ms: Span left until the answer is worthless; None: no limit.
    """

    MAX_BYTES: ClassVar[int] = 524_288

    job: Id
    attempt: Attempt
    lease_ms: SpanMs
    messages: tuple[ChatMessage, ...]
    generation: Generation = msgspec.field(default_factory=Generation)
    deadline_ms: SpanMs | None = None
    model: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    stream: bool = False
    escalate: Escalate = Escalate.AUTO
    privacy: Privacy = Privacy.ANY
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5

    @property
    def prompt_chars(self) -> int:
        """Length of all turns; what logs show instead of the prompt."""
        return sum(len(turn.content) for turn in self.messages)


class AttemptRef(Part, frozen=True, kw_only=True):
    """One attempt at one job."""

    job: Id
    attempt: Attempt


class WorkerCancel(Message, frozen=True, kw_only=True):
    """Stop this attempt; its result is no longer wanted."""

    job: Id
    attempt: Attempt


class Settled(Message, frozen=True, kw_only=True):
    """These attempts are closed and stored; the worker may forget them."""

    MAX_BYTES: ClassVar[int] = 262_144

    jobs: tuple[AttemptRef, ...]


class WorkerOp(StrEnum):
    """What a worker can be told to do."""

    DRAIN = "drain"
    RESUME = "resume"
    RELOAD = "reload"


class WorkerCommand(Message, frozen=True, kw_only=True):
    """A command to a worker."""

    id: Id
    op: WorkerOp


class DesiredModel(Message, frozen=True, kw_only=True):
    """Retained: the model this worker should run (device-shadow style)."""

    name: Annotated[str, msgspec.Meta(max_length=128)]
    version: Annotated[str, msgspec.Meta(max_length=64)]
    manifest_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    url: Annotated[str, msgspec.Meta(max_length=2_048)] = ""


class JobStarted(Message, frozen=True, kw_only=True):
    """The worker has the attempt on its disk and works on it."""

    attempt: Attempt


class WorkerTokenChunk(Message, frozen=True, kw_only=True):
    """A piece of a growing answer, from a worker. `i` and `t` as in `TokenChunk`."""

    attempt: Attempt
    i: Count
    t: Annotated[str, msgspec.Meta(max_length=65_536)]


class FinishReason(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"


class LocalAnswer(Part, frozen=True, kw_only=True):
    """What an edge model said.

    Attributes:
        confidence: 0..1, see `edge_worker.core.confidence`; None where none was computed.
    """

    text: Text
    model: Annotated[str, msgspec.Meta(max_length=128)]
    confidence: Share | None = None
    finish: FinishReason = FinishReason.STOP
    usage: Usage = msgspec.field(default_factory=Usage)


class JobDone(Message, frozen=True, kw_only=True):
    """The worker's answer; it stays in the worker's spool until it is settled."""

    MAX_BYTES: ClassVar[int] = 4_194_304

    attempt: Attempt
    answer: LocalAnswer


class JobFailed(Message, frozen=True, kw_only=True):
    """The worker could not work on the attempt at all.

    Attributes:
        retryable: Another board may succeed.
    """

    attempt: Attempt
    code: Code
    message: Note = ""
    retryable: bool = True


class Escalation(Message, frozen=True, kw_only=True):
    """The worker hands the job to the cloud.

    Attributes:
        answer: What it already has, whole or half; kept so that nothing is lost if no cloud
            answers. None if it generated nothing.
        prompt_tokens: Exact count by the worker's tokenizer.
    """

    MAX_BYTES: ClassVar[int] = 4_194_304

    attempt: Attempt
    reason: Reason
    detail: Note = ""
    prompt_tokens: Count = 0
    answer: LocalAnswer | None = None


class JobProgress(Message, frozen=True, kw_only=True):
    """Still working: renews the lease.

    Attributes:
        tokens: Generated so far.
    """

    attempt: Attempt
    tokens: Count = 0


class HeldJobs(Message, frozen=True, kw_only=True):
    """What a worker holds, told after each (re)connection and each new dispatcher epoch.

    The dispatcher requeues at once what it believes assigned here and is not in the list.

    Attributes:
        boot: Of the worker.
        running: Attempts waiting or being worked on.
        finished: Attempts whose outcome waits for `Settled`; it is sent again beside this.
    """

    MAX_BYTES: ClassVar[int] = 262_144

    boot: Id
    running: tuple[AttemptRef, ...] = ()
    finished: tuple[AttemptRef, ...] = ()


class Probe(Message, frozen=True, kw_only=True):
    """Measures bandwidth: the dispatcher sends the same bytes back on `echo`."""

    MAX_BYTES: ClassVar[int] = 1_048_576

    id: Id
    padding: str = ""


# ---------------------------------------------------------------- dispatcher, dashboards, admins


class DispatcherStatus(StrEnum):
    """Whether the dispatcher is there."""

    ONLINE = "online"
    OFFLINE = "offline"


class DispatcherPresence(Message, frozen=True, kw_only=True):
    """Retained; its `offline` form is the dispatcher's will.

    Attributes:
        epoch: Name of this run of the dispatcher; on a new one workers send `HeldJobs`.
    """

    status: DispatcherStatus
    epoch: Id
    since_at_ms: InstantMs = 0
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Quantiles(Part, frozen=True, kw_only=True):
    """Milliseconds over the last minute."""

    p50: Measure = 0.0
    p95: Measure = 0.0
    p99: Measure = 0.0


class FleetSummary(Message, frozen=True, kw_only=True):
    """Once a second, retained: the numbers of an overview page.

    Attributes:
        queued: Jobs waiting for a slot.
        inflight: Jobs assigned or running.
        escalated: Jobs in the cloud lane now.
        workers: Number of workers by presence.
        finished: Final results by status since the dispatcher started.
        answered_by: `ok` results by who gave them since then.
        reasons: Escalations by reason since then.
        jobs_per_s: Final results per second over the last 10 s.
        latency_ms: Receipt to result.
        cost_usd: Spent since the dispatcher started.
    """

    at_ms: InstantMs
    queued: Count = 0
    inflight: Count = 0
    escalated: Count = 0
    workers: dict[str, int] = msgspec.field(default_factory=dict)
    finished: dict[str, int] = msgspec.field(default_factory=dict)
    answered_by: dict[str, int] = msgspec.field(default_factory=dict)
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    jobs_per_s: Measure = 0.0
    latency_ms: Quantiles = msgspec.field(default_factory=Quantiles)
    cost_usd: Measure = 0.0


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
    """Retained while it fires; an empty payload on its topic clears it."""

    id: Id
    severity: Severity
    title: Note
    since_at_ms: InstantMs
    detail: Note = ""


class AdminOp(StrEnum):
    """What an operator can ask of the dispatcher."""

    JOBS_LIST = "jobs.ls"
    JOB_SHOW = "jobs.show"
    JOB_CANCEL = "jobs.cancel"
    JOB_RETRY = "jobs.retry"
    WORKERS_LIST = "workers.ls"
    WORKER_SHOW = "workers.show"
    WORKER_DRAIN = "workers.drain"
    WORKER_RESUME = "workers.resume"
    WORKER_RELOAD = "workers.reload"


class AdminRequest(Message, frozen=True, kw_only=True):
    """An operator's request.

    Attributes:
        req: Names the request; the reply carries it.
        job: A job key, for the `jobs.*` operations on one job.
        worker: A worker id, for the `workers.*` operations on one worker.
        status: Filter of `jobs.ls`.
        dead: Filter of `jobs.ls`: only dead letters.
        limit: Most rows to return.
    """

    req: Id
    op: AdminOp
    job: Id | None = None
    worker: Id | None = None
    device: Id | None = None
    status: JobStatus | None = None
    dead: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 50


class JobView(Part, frozen=True, kw_only=True):
    """A job as an operator sees it: everything but the prompt.

    Attributes:
        dead: It failed for good and can be inspected and retried.
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
    result: JobResult | None = None


class WorkerView(Part, frozen=True, kw_only=True):
    """A worker as an operator sees it.

    Attributes:
        weight: 0.6 x compute + 0.4 x bandwidth with the default coefficients.
        compute: Measured decode tokens/s over the reference board's, clipped to 0..1.
        bandwidth: Measured Mbit/s over the reference link's, clipped to 0..1.
        inflight: The dispatcher's own count of leases.
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


class AdminReply(Message, frozen=True, kw_only=True):
    """The answer to an `AdminRequest`.

    Attributes:
        code: Empty when `ok`.
        message: For people: what happened and what to do next.
    """

    MAX_BYTES: ClassVar[int] = 4_194_304

    req: Id
    ok: bool
    code: Code = ""
    message: Note = ""
    jobs: tuple[JobView, ...] = ()
    workers: tuple[WorkerView, ...] = ()
