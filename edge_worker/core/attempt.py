"""An attempt at a job: as the spool keeps it, and as the session works on it."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import msgspec

from edge_worker.core.generation import GenerationRequest, Trust
from fleet_protocol import messages as m
from fleet_protocol.messages import Assignment, Escalation, JobDone, JobFailed

Outcome: TypeAlias = JobDone | JobFailed | Escalation
"""What a worker says of an attempt when it is through with it."""


class SpooledJob(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt the worker holds: its assignment and, once it is through, its outcome."""

    assignment: Assignment
    received_at_ms: int
    outcome: Outcome | None = None


class Phase(StrEnum):
    """How far an attempt has come."""

    ENCODING = "encoding"
    GENERATING = "generating"
    FINISHED = "finished"


class HeldJob(msgspec.Struct, kw_only=True):
    """The session's own, mutable record of an attempt it holds.

    Attributes:
        id: Of its generation. Never used twice, so that what an engine says of an earlier
            generation of the same attempt moves nothing.
        is_told: The dispatcher was told that the attempt is here, or what became of it.
        prompt_tokens: Exact count; 0 until it is known.
        kept_tokens: Of them those that the engine need not read: it has read them before.
        tokens: Generated so far.
        parts: The text generated so far, piece by piece.
        told_parts: How many of them were sent as chunks.
        chunk: Number of the next chunk.
        heard_at_ms: When the dispatcher last got a sign of life of this attempt.
        repeat_at_ms: When the outcome is told again unless it is settled by then.
        repeats: How often it was told again.
    """

    spooled: SpooledJob
    id: str
    heard_at_ms: int
    phase: Phase = Phase.ENCODING
    is_told: bool = False
    prompt_tokens: int = 0
    kept_tokens: int = 0
    tokens: int = 0
    parts: list[str] = msgspec.field(default_factory=list)
    told_parts: int = 0
    chunk: int = 0
    repeat_at_ms: int = 0
    repeats: int = 0

    @property
    def job(self) -> m.JobKey:
        """The dispatcher's name of the job."""
        return m.JobKey(self.spooled.assignment.job)

    @property
    def attempt(self) -> int:
        """The fencing token."""
        return self.spooled.assignment.attempt

    @property
    def ref(self) -> m.AttemptRef:
        """The attempt as messages name it."""
        return m.AttemptRef(job=self.job, attempt=self.attempt)

    @property
    def deadline_at_ms(self) -> int | None:
        """When the answer is worthless, by the worker's own clock."""
        span_ms = self.spooled.assignment.deadline_ms
        return None if span_ms is None else self.spooled.received_at_ms + span_ms

    def request(self, tokens: tuple[int, ...], *, trust: Trust | None) -> GenerationRequest:
        """Return what the engine is to generate, the prompt being these tokens."""
        assignment = self.spooled.assignment
        return GenerationRequest(
            id=self.id,
            prompt_tokens=tokens,
            generation=assignment.generation,
            priority=assignment.priority,
            stream=assignment.stream,
            trust=trust,
        )

    def is_late(self, now_ms: int) -> bool:
        """Tell whether the deadline has passed."""
        at_ms = self.deadline_at_ms
        return at_ms is not None and now_ms >= at_ms
