"""Jobs, as devices see them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec

from fleet_protocol.messages.output import OutputFormat
from fleet_protocol.messages.words import (
    PROMPT_MAX_CHARS,
    Code,
    Count,
    Id,
    Measure,
    Message,
    Note,
    Part,
    Share,
    SpanMs,
    Text,
)


class Escalate(StrEnum):
    """Whether a job may be answered by the cloud."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Privacy(StrEnum):
    """Where a prompt may travel. A `site` job never leaves the site's own boards."""

    ANY = "any"
    SITE = "site"


class Defer(StrEnum):
    """Whether a job may wait for the hours in which the cloud costs less."""

    NO = "no"
    OFFPEAK = "offpeak"


class Caching(StrEnum):
    """Whether a job may be answered with what was answered before, and its answer be kept.

    `auto`: where the same question always gets the same answer: temperature 0, or a seed.
    `always`: sampled answers, too. `off`: neither is looked for nor kept.
    """

    AUTO = "auto"
    ALWAYS = "always"
    OFF = "off"


class Split(StrEnum):
    """Whether a long text is cut into parts that many boards answer, and their answers merged.

    `paragraphs`: where it does not fit a board by a safe estimate. `auto`: only once no board can
    take all of it.
    """

    NO = "no"
    PARAGRAPHS = "paragraphs"
    AUTO = "auto"


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
    """Why a job left the board it was assigned to, or never reached one.

    Attributes:
        TOO_LONG: Prompt and answer do not fit the context.
        TOO_SLOW: The board would more likely than not be late for the job's deadline.
        LOCAL_ERROR: The board could not; also what a reason of a later release is read as.
    """

    REQUESTED = "requested"
    TOO_LONG = "too_long"
    TOO_SLOW = "too_slow"
    COMPLEX = "complex"
    LOW_CONFIDENCE = "low_confidence"
    UNSUPPORTED = "unsupported"
    OVERHEATED = "overheated"
    LOCAL_ERROR = "local_error"

    @classmethod
    def _missing_(cls, value: object) -> Reason | None:
        return cls.LOCAL_ERROR if isinstance(value, str) else None


class FinishReason(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"


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
        max_tokens: Most tokens to generate, 1..4096; those of calculations that the model writes
            and nobody sees do not count, up to `calculation.SPARE_TOKENS`.
        temperature: 0 is greedy; up to 2.
        top_p: Nucleus mass, above 0 up to 1.
        seed: Makes sampling above temperature 0 repeatable.
        stop: Texts that end the answer; they are not part of it.
        output: The form that the answer is held to while it is generated; None: free text.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 64
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    stop: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...],
        msgspec.Meta(max_length=8),
    ] = ()
    output: OutputFormat | None = None


class Needs(Part, frozen=True, kw_only=True, omit_defaults=True):
    """What a board must have to be given a job.

    Attributes:
        model: The same as the job's own `model`.
        label: One of the board's labels: `camera`, or with its value `site=north`.
    """

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class JobSubmit(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A device asks. Exactly one of `prompt` and `messages` must be given.

    Attributes:
        prompt: What to answer, as one user turn.
        messages: A conversation instead, oldest first.
        model: Name of the model to use; None takes the fleet's default.
        needs: What else its board must have. Whether the cloud may answer is for `escalate` and
            `privacy` to say.
        max_tokens: See `Generation`; so are temperature, top_p, seed, stop and output. `output`
            and `stop` exclude each other: a stop text would cut the form in two.
        stream: Send `TokenChunk`s while the answer grows.
        escalate: Whether the cloud may answer.
        privacy: Whether the prompt may leave the site.
        priority: 0 (first to be shed) .. 9 (first to be served).
        deadline_ms: Span from receipt after which the answer is worthless; None: no limit of
            the device's own, the dispatcher's default applies.
        not_before_ms: Span from receipt before which nobody works on the job; None: at once. A
            deadline counts from receipt, too, and must lie behind it; the dispatcher's own begins
            where this ends.
        start_within_ms: Span, from when it may begin, within which a board or the cloud must have
            begun with it, or it ends as `not_started_in_time`; None: the dispatcher's default. A
            job that is given out has begun, unless its board is lost before it said so.
        attempt_ms: Longest that one attempt may take, from when a board is given the job, or the
            cloud is asked; then it is called off there and made elsewhere. None: the
            dispatcher's default.
        lease_ms: A board must be heard of within this span, again and again, or the job goes
            elsewhere; None: the dispatcher's default.
        compact: Answer with `CompactResult`, for devices with small buffers.
        defer: `offpeak`: if the job needs the cloud, it waits for the cheaper hours as long as its
            deadline allows; without a deadline of its own, for a day at most.
        cache: Whether an earlier answer to the same question will do.
        cache_ttl_ms: Span for which the answer is kept, and greatest age of an answer that will
            do; None: the fleet's own (an hour; five minutes for sampled answers).
        split: Whether a long text is cut into parts. The last of several turns is the text and
            those before it are the instruction; of a single turn the first paragraph is. Excludes
            `output`: the answer to a part does not have its form.
        traceparent: The trace that the device's own span belongs to, as W3C Trace Context writes
            it; one that cannot be read is no trace.
    """

    MAX_BYTES: ClassVar[int] = 262_144

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=PROMPT_MAX_CHARS)] | None = None
    messages: (
        Annotated[tuple[ChatMessage, ...], msgspec.Meta(min_length=1, max_length=256)] | None
    ) = None
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    needs: Needs | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 64
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    stop: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...],
        msgspec.Meta(max_length=8),
    ] = ()
    output: OutputFormat | None = None
    stream: bool = False
    escalate: Escalate = Escalate.AUTO
    privacy: Privacy = Privacy.ANY
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400_000)] | None = None
    not_before_ms: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400_000)] | None = None
    start_within_ms: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400_000)] | None = None
    attempt_ms: Annotated[int, msgspec.Meta(ge=100, le=86_400_000)] | None = None
    lease_ms: Annotated[int, msgspec.Meta(ge=3_000, le=3_600_000)] | None = None
    compact: bool = False
    defer: Defer = Defer.NO
    cache: Caching = Caching.AUTO
    cache_ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400_000)] | None = None
    split: Split = Split.NO
    traceparent: Annotated[str, msgspec.Meta(max_length=64)] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of `prompt` and `messages`")
        if (self.not_before_ms or 0) >= (self.deadline_ms or 2**62):
            raise ValueError("`deadline_ms` must be longer than `not_before_ms`: both from receipt")
        if self.output is not None and self.stop:
            raise ValueError("give `output` or `stop`, not both: a stop text would cut the form")
        if self.output is not None and self.split is not Split.NO:
            raise ValueError("give `output` or `split`, not both: a part's answer has not the form")
        if self.needs is not None and self.needs.model is not None:
            if self.model not in {None, self.needs.model}:
                raise ValueError("`model` and `needs.model` name different models: give one")
            msgspec.structs.force_setattr(self, "model", self.needs.model)

    @property
    def label(self) -> str | None:
        """The label that its board must have; None: any board will do."""
        return None if self.needs is None else self.needs.label

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
            output=self.output,
        )


class JobCancel(Message, frozen=True, kw_only=True):
    """A device no longer wants the answer."""


class AckStatus(StrEnum):
    """What became of a submission."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class RateOf(StrEnum):
    """Whose new jobs are too many."""

    DEVICE = "device"
    TENANT = "tenant"


class JobAck(Message, frozen=True, kw_only=True):
    """The dispatcher's word on a submission: stored for good, or refused and why.

    Attributes:
        position: Jobs ahead in the queue when this one was accepted.
        code: Empty when accepted; else `busy`, `malformed`, `unknown_model`, ...
        message: For people: what to do next.
        retry_after_ms: When `busy`: wait this long before the same submission again.
        rate: When `busy` because more came in than may: whose jobs those are.
    """

    status: AckStatus
    position: Count = 0
    code: Code = ""
    message: Note = ""
    retry_after_ms: SpanMs = 0
    rate: RateOf | msgspec.UnsetType = msgspec.UNSET


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
        completion_tokens: All that were generated, hidden calculations included.
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


class OfflineMatch(Part, frozen=True, kw_only=True):
    """How the offline answer library found its answer.

    Attributes:
        kind: `exact`, `pattern`, `nearest` or `default`.
        entry: The operator's name for it; empty for the default.
        score: How alike question and example are, 0..1; 1 for `exact` and `pattern`.
    """

    kind: Annotated[str, msgspec.Meta(max_length=16)]
    entry: Annotated[str, msgspec.Meta(max_length=64)] = ""
    score: Share = 0.0


class JobResult(Message, frozen=True, kw_only=True):
    """The one final word on a job.

    Attributes:
        id: The device's own job id.
        reason: Why it was escalated or degraded; None if it simply was answered where assigned.
        code: When not `ok`: a stable name of what went wrong.
        message: When not `ok` or `degraded`: for people.
        offline: For `answered_by` offline; None otherwise.
        confidence: Of the edge model, 0..1; None where there is none.
        finish: `length`: `max_tokens` cut the answer; None where that is not known.
        degraded: The answer is not of the quality that was asked for.
        simulated: The provider was a simulator: the text means nothing.
        attempts: How many times the job was assigned.
    """

    MAX_BYTES: ClassVar[int] = 4_194_304

    id: Id
    status: JobStatus
    text: Text = ""
    answered_by: AnsweredBy | None = None
    offline: OfflineMatch | None = None
    reason: Reason | None = None
    code: Code = ""
    message: Note = ""
    worker: Id | None = None
    model: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    confidence: Share | None = None
    finish: FinishReason | None = None
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
