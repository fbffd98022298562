"""What workers and the dispatcher say to each other."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

import msgspec

from fleet_protocol.messages.jobs import (
    ChatMessage,
    Escalate,
    FinishReason,
    Generation,
    Privacy,
    Reason,
    Usage,
)
from fleet_protocol.messages.words import (
    WHOLE_MAX,
    Attempt,
    BoardMeasure,
    Code,
    Count,
    Id,
    InstantMs,
    Message,
    Note,
    Part,
    Share,
    SpanMs,
    Text,
)


class PresenceStatus(StrEnum):
    """Whether a worker takes jobs."""

    ONLINE = "online"
    OFFLINE = "offline"
    DRAINING = "draining"


class Unfit(StrEnum):
    """Why a worker's host takes no jobs, though nobody drains it."""

    DISK_READ_ONLY = "disk_read_only"
    SPOOL_UNAVAILABLE = "spool_unavailable"
    DISK_LOW = "disk_low"
    OVERHEATED = "overheated"


class Presence(Message, frozen=True, kw_only=True):
    """Retained; its `offline` form is the worker's will.

    Attributes:
        boot: Name of this run of the worker. A will of an earlier run changes nothing.
        since_at_ms: By the worker's own clock.
        reason: Why it drains by itself, in the words of `Unfit`, to which later ones may be added;
            None: it does not, or was told to.
    """

    status: PresenceStatus
    boot: Id
    since_at_ms: InstantMs = 0
    reason: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class ModelInfo(Part, frozen=True, kw_only=True):
    """A model a worker can answer with.

    Attributes:
        context_tokens: Most tokens of prompt and answer together on this worker.
        sha256: Of the model graph file, hex; tells builds of one version apart.
        variant: Which of the artefact's graphs runs here.
    """

    name: Annotated[str, msgspec.Meta(max_length=128)]
    version: Annotated[str, msgspec.Meta(max_length=64)]
    context_tokens: Annotated[int, msgspec.Meta(ge=1, le=WHOLE_MAX)]
    sha256: Annotated[str, msgspec.Meta(max_length=64)] = ""
    variant: Annotated[str, msgspec.Meta(max_length=32)] = ""


class Benchmark(Part, frozen=True, kw_only=True):
    """What the worker measured of itself; the dispatcher turns it into a weight.

    Attributes:
        decode_tok_s: Tokens generated per second, one request alone.
        prefill_tok_s: Prompt tokens read per second.
        bandwidth_mbps: Payload megabits per second, worker to dispatcher and back; None until
            it was measured.
        measured_at_ms: By the worker's own clock.
    """

    decode_tok_s: BoardMeasure
    prefill_tok_s: BoardMeasure
    bandwidth_mbps: BoardMeasure | None = None
    measured_at_ms: InstantMs = 0


JOINT_ANSWERS: Final = "joint-answers"
"""A dispatcher's capability: it takes several answers in one message, see `JobDone.more`."""
JOINT_ASSIGNMENTS: Final = "joint-assignments"
"""A worker's capability: it takes several jobs in one message, see `Assignment.more`."""


class WorkerInfo(Message, frozen=True, kw_only=True):
    """Retained: what a worker is and can do.

    Attributes:
        slots: Jobs it answers at once.
        prefetch: Jobs it holds beyond that, so that no slot waits for the network.
        labels: The operator's own names for what the board has, each with a value or an empty
            one: a job may ask for one, see `Needs`.
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
    cpu_pct: BoardMeasure
    mem_pct: BoardMeasure
    inflight: Count
    tok_s: BoardMeasure = 0.0
    temp_c: float | None = None
    throttled: bool | None = None


class Assignment(Message, frozen=True, kw_only=True):
    """A job for this worker, under a lease.

    Attributes:
        attempt: The fencing token: everything said about the job must carry it.
        lease_ms: The worker must be heard of within this span, again and again.
        deadline_ms: Span left until the answer is worthless; None: no limit.
        cache_ttl_ms: Span for which the worker keeps its answer for equal questions, and greatest
            age of an earlier one that will do; 0: none will, and this one is not kept.
        tenant: Whose device asks; a worker gives no tenant what it answered to another.
        cloud_away: Nobody in the cloud could take the job now. It may go there all the same, but
            with a whole answer, however doubtful: most likely that will be the result.
        more: Further jobs, decided in the same moment: one message, not many. Only for workers with
            the capability `JOINT_ASSIGNMENTS`; empty in each of them.
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
    cache_ttl_ms: SpanMs = 0
    tenant: Annotated[str, msgspec.Meta(max_length=64)] = ""
    cloud_away: bool = False
    more: tuple[Assignment, ...] = ()

    @property
    def each(self) -> tuple[Assignment, ...]:
        """All that came together, each for itself."""
        return (msgspec.structs.replace(self, more=()), *self.more) if self.more else (self,)

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
    """Finish what it has, end, be started again by its service: with the model there is then."""
    FORGET_ANSWERS = "forget-answers"
    REPORT = "report"
    """Say again that it is there, what it is and what it holds."""


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


class LocalAnswer(Part, frozen=True, kw_only=True):
    """What an edge model said.

    Attributes:
        confidence: 0..1, see `fleet_protocol.confidence`; None where none was computed.
        cached: It was generated for an earlier job; `usage` is what it took then.
    """

    text: Text
    model: Annotated[str, msgspec.Meta(max_length=128)]
    confidence: Share | None = None
    finish: FinishReason = FinishReason.STOP
    usage: Usage = msgspec.field(default_factory=Usage)
    cached: bool = False


class FurtherAnswer(Part, frozen=True, kw_only=True):
    """The answer to another attempt, in the message of one."""

    job: Id
    attempt: Attempt
    answer: LocalAnswer


class JobDone(Message, frozen=True, kw_only=True):
    """The worker's answer; it stays in the worker's spool until it is settled.

    Attributes:
        more: Answers to further jobs, ready in the same moment: one message, not many. Only for a
            dispatcher with the capability `JOINT_ANSWERS`; what is told again is told alone.
    """

    MAX_BYTES: ClassVar[int] = 4_194_304

    attempt: Attempt
    answer: LocalAnswer
    more: tuple[FurtherAnswer, ...] = ()


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
