"""What the worker needs of the outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from fleet_protocol.errors import FleetError, RetryableError
from fleet_protocol.messages import (
    Assignment,
    ChatMessage,
    Escalation,
    FinishReason,
    Generation,
    JobDone,
    JobFailed,
    JobKey,
    ModelInfo,
)

Outcome: TypeAlias = JobDone | JobFailed | Escalation
"""What a worker says of an attempt when it is through with it."""


class SpoolUnavailableError(RetryableError):
    """The spool cannot be written now (disk full, read-only); nothing of the batch was."""

    code = "spool_unavailable"


class ModelError(FleetError):
    """A model artefact is missing, damaged or not for this machine."""

    code = "model"


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate.

    Attributes:
        id: Name of the request, unique in the engine while it is there.
        prompt_tokens: Token ids of the whole prompt, chat template applied.
        priority: 0..9, higher is admitted first.
    """

    id: str
    prompt_tokens: tuple[int, ...]
    generation: Generation
    priority: int = 5


class Grew(msgspec.Struct, frozen=True):
    """Text was generated: whole characters only, and none that a stop text may still take back.

    Attributes:
        tokens: Generated so far.
    """

    id: str
    text: str
    tokens: int


class Finished(msgspec.Struct, frozen=True):
    """The answer is complete.

    Attributes:
        text: All of it, without the stop text.
        prompt_tokens: Read; `cached_tokens` of them came from the prefix cache.
        logprobs: Natural log-probability of each generated token under the model, before
            temperature; the end-of-answer token included.
    """

    id: str
    text: str
    finish: FinishReason
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    logprobs: tuple[float, ...]


class Broke(msgspec.Struct, frozen=True):
    """This request failed; the others go on."""

    id: str
    code: str
    message: str


EngineEvent: TypeAlias = Grew | Finished | Broke


class InferenceEngine(Protocol):
    """Generates several answers at once, one token a row a step (continuous batching).

    Not thread-safe: one owner calls it, from one thread at a time. Requests join with `add` and
    leave at the step that finishes them or with `cancel`; the others never notice.
    """

    @property
    def model(self) -> ModelInfo:
        """What it answers with."""
        ...

    @property
    def slots(self) -> int:
        """How many requests it works on at once; more wait inside, best priority first."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do: `step` would return nothing."""
        ...

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the exact prompt tokens of a conversation, ready for generation."""
        ...

    def add(self, request: GenerationRequest) -> None:
        """Let a request join at the next step.

        Raises:
            RejectedError: `too_long`: prompt and answer do not fit the context.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Drop a request and free its row at once; unknown ids are ignored. No event follows."""
        ...

    def step(self) -> list[EngineEvent]:
        """Work for about one token's time and return what came of it, in order. Blocks."""
        ...

    def close(self) -> None:
        """Release the model's memory."""
        ...


class SpooledJob(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt the worker holds: its assignment and, once it is through, its outcome."""

    assignment: Assignment
    received_at_ms: int
    outcome: Outcome | None = None


class Spool(Protocol):
    """Attempts that survive kill -9. Synchronous: the service calls it in its own executor."""

    def open(self) -> None:
        """Open and migrate; raises SpoolUnavailableError."""
        ...

    def commit(self, *, keep: Iterable[SpooledJob], forget: Iterable[tuple[JobKey, int]]) -> None:
        """Save and delete in one transaction. Raises SpoolUnavailableError."""
        ...

    def load(self) -> list[SpooledJob]:
        """Return everything held, oldest first."""
        ...

    def close(self) -> None:
        """Close."""
        ...


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """What the host says of itself now. None where it cannot say."""

    cpu_pct: float
    mem_pct: float
    temp_c: float | None = None
    throttled: bool | None = None
    disk_free_mb: int | None = None


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the host is."""

    board: str
    cpu: str
    cores: int
    memory_mb: int
    cpu_features: tuple[str, ...]


class Host(Protocol):
    """The machine the worker runs on."""

    def facts(self) -> HostFacts:
        """Return what does not change."""
        ...

    def read(self) -> HostReading:
        """Return what changes; takes a few milliseconds at most."""
        ...
