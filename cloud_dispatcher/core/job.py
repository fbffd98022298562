"""A job as the dispatcher knows it: one immutable value for each moment of its life."""

from __future__ import annotations

from typing import Final

import msgspec

from cloud_dispatcher.core.spending import Payer
from fleet_protocol.messages import (
    DeviceId,
    JobId,
    JobKey,
    JobResult,
    JobStatus,
    JobSubmit,
    LocalAnswer,
    PastAttempt,
    Reason,
    WorkerId,
)

_NEVER_MS: Final = 2**62
_PAST_MOST: Final = 16


class ReplyTo(msgspec.Struct, frozen=True, kw_only=True):
    """Where answers go besides the job's own topics.

    Attributes:
        silent: Nobody asked but the dispatcher itself: nobody is told anything.
        plain: The job came as `ask`: it gets one plain text on `answer` and nothing else.
        topic: MQTT 5 Response Topic, already checked to lie in the device's own subtree.
        correlation_data: Sent back with it, byte for byte.
    """

    silent: bool = False
    plain: bool = False
    topic: str | None = None
    correlation_data: bytes | None = None


class PartOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which stretch of a long text a job answers, or which answers it merges.

    Attributes:
        job: The job that gets the result.
        round: 0: a stretch of the text; above: a merge of answers of the round before.
        start: First character of the text, or first answer in the order of the round before.
        end: The one after the last.
    """

    job: JobKey
    round: int
    start: int
    end: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job. Every change makes a new value; what was handed out never changes.

    Attributes:
        attempt: Number of the last lease or cloud call given out, 0 before the first; the fencing
            token: whatever carries an older one moves nothing.
        edge_tries: Leases given out since the job was (last) submitted or retried by a person.
        cloud_tries: Cloud calls likewise.
        worker: Holder of the lease; None while queued or in the cloud lane.
        last_worker: Last holder of a lease that ended without an answer; a retry prefers another.
        lapsed: That lease was taken away unheard: its holder may still come back with the answer.
        assigned_at_ms: When the last lease was given out.
        lease_until_ms: When the lease is over unless renewed.
        start_by_at_ms: When somebody must have begun with it; None: there is no such limit, or
            somebody has.
        not_before_ms: A retry waits until then, and a job whose device wants it later.
        reason: Why it was escalated.
        detail: For people: the figures behind `reason`.
        cloud_code: Why no cloud answered, or none may; not empty: the cloud is not asked again.
        cloud_message: The same for people.
        kept: What a board already answered, in case no cloud can.
        result: The one final word; None while the job is open.
        dead: Failed for good, or got no more than the library's default: a dead letter, to be
            inspected and retried by a person.
        told: The broker confirmed the result; False with a `result` is the outbox.
        answer_key: What its question has in common with equal ones; None: an answer serves nobody
            else, see `AnswerCache.key_of`.
        parts: Jobs made so far to answer this one in parts, see `Parts`.
        part: Whose part it is; None: a job of its own.
        payer: Who pays besides its tenant; None: nobody.
        past: Attempts that ended without a result, for people; see `past_with`.
    """

    key: JobKey
    device: DeviceId
    id: JobId
    submit: JobSubmit
    received_at_ms: int
    deadline_at_ms: int | None = None
    start_by_at_ms: int | None = None
    reply: ReplyTo = msgspec.field(default_factory=ReplyTo)
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    edge_tries: int = 0
    cloud_tries: int = 0
    worker: WorkerId | None = None
    last_worker: WorkerId | None = None
    lapsed: bool = False
    assigned_at_ms: int | None = None
    lease_until_ms: int | None = None
    not_before_ms: int = 0
    first_token_at_ms: int | None = None
    reason: Reason | None = None
    detail: str = ""
    cloud_code: str = ""
    cloud_message: str = ""
    kept: LocalAnswer | None = None
    result: JobResult | None = None
    finished_at_ms: int | None = None
    dead: bool = False
    told: bool = False
    answer_key: bytes | None = None
    parts: int = 0
    part: PartOf | None = None
    payer: Payer | None = None
    past: tuple[PastAttempt, ...] = ()

    @property
    def begins_at_ms(self) -> int:
        """When it may begin, as its device wants it."""
        return self.received_at_ms + (self.submit.not_before_ms or 0)

    @property
    def is_delayed(self) -> bool:
        """Whether it waits by its device's wish, and was not placed since."""
        wanted = self.submit.not_before_ms is not None and self.part is None
        return (
            wanted
            and self.status is JobStatus.QUEUED
            and self.attempt == 0
            and self.not_before_ms == self.begins_at_ms
        )

    @property
    def presses_at_ms(self) -> int:
        """When it must have its result, or somebody must have begun: what comes first."""
        deadline_ms = _NEVER_MS if self.deadline_at_ms is None else self.deadline_at_ms
        start_by_ms = self.start_by_at_ms
        return deadline_ms if start_by_ms is None else min(deadline_ms, start_by_ms)

    @property
    def is_open(self) -> bool:
        """Whether the job still waits for its one result."""
        return self.result is None

    def past_with(self, code: str, ended_at_ms: int) -> tuple[PastAttempt, ...]:
        """Return the past with the last attempt in it, once: who had it, how long, why it ended."""
        known = bool(self.past) and self.past[-1].attempt == self.attempt
        if self.attempt == 0 or known:
            return self.past
        over = PastAttempt(
            attempt=self.attempt,
            ended_at_ms=ended_at_ms,
            code=code[:64],
            worker=self.worker,
            began_at_ms=None if self.worker is None else self.assigned_at_ms,
        )
        return (*self.past[1 - _PAST_MOST :], over)
