"""What the worker needs of the outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from edge_worker.core.attempt import Outcome, SpooledJob
from edge_worker.core.generation import Broke, EngineEvent, Finished, GenerationRequest, Grew
from edge_worker.core.health import HostReading
from edge_worker.core.renewal import Validity
from edge_worker.core.sampling import Float32Array
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.errors import BusClosedError, FleetError, RetryableError
from fleet_protocol.messages import ChatMessage, JobKey, ModelInfo, OutputFormat

# The core's values that cross these ports, under one roof for the adapters.
__all__ = [
    "Broke",
    "Embedder",
    "EngineEvent",
    "Finished",
    "GenerationRequest",
    "Grew",
    "Host",
    "HostFacts",
    "HostReading",
    "Identity",
    "IdentityError",
    "InferenceEngine",
    "ModelError",
    "Outcome",
    "OutputGuide",
    "OutputGuides",
    "Spool",
    "SpoolUnavailableError",
    "SpooledJob",
    "StrangerError",
]


class StrangerError(BusClosedError):
    """The broker takes us in, and does not let us speak under this id."""

    code = "not_authorized"

    def __init__(self, worker: str) -> None:
        super().__init__(
            f"the broker lets this certificate or user not speak as worker {worker!r}",
            hint="set `id` (or --id) to the name that it was enrolled by; "
            "where that is right, the broker's list is old: fleet pki broker FOLDER --reload",
        )


class ReloadError(FleetError):
    """An operator wants the model loaded anew; the worker has drained for it."""

    code = "reload"

    def __init__(self) -> None:
        super().__init__(
            "an operator had this worker end, to load its model anew",
            hint="start it again; a service manager does that by itself (exit code 7)",
        )


class SpoolUnavailableError(RetryableError):
    """The spool cannot be written now (disk full, read-only); nothing of the batch was."""

    code = "spool_unavailable"


class ModelError(FleetError):
    """A model artefact is missing, damaged or not for this machine."""

    code = "model"


class IdentityError(FleetError):
    """The worker's key or certificate cannot be used."""

    code = "identity"


class Identity(Protocol):
    """By what the broker knows this worker. Every method raises IdentityError."""

    def validity(self) -> Validity:
        """Return from when to when the certificate holds."""
        ...

    def request(self) -> str:
        """Return a request for the next one, as PEM."""
        ...

    def check(self, chain: str) -> Validity:
        """Return from when to when a new certificate would hold; it must be for our key."""
        ...

    def replace(self, chain: str) -> Validity:
        """Put a new certificate in place of the one there is, in one step."""
        ...


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
        """Whether there is nothing to do: `step` would return nothing.

        So it is while requests wait and `limit_slots` lets none of them begin.
        """
        ...

    def limit_slots(self, count: int) -> None:
        """Let no further request begin while `count` or more are worked on; 0: none at all.

        What runs is not touched. More than `slots` is as many as `slots`.
        """
        ...

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the exact prompt tokens of a conversation, ready for generation."""
        ...

    def kept_tokens(self, prompt_tokens: tuple[int, ...]) -> int:
        """Return how many tokens, from the start of a prompt, it would not have to read again."""
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


class OutputGuide(Protocol):
    """Holds one answer to its form while it is generated; for one request, used by one thread.

    Nothing of it knows the probability of a token: it says which tokens may come, the engine
    chooses among them.
    """

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow: the engine may end the answer without a token."""
        ...

    @property
    def may_end(self) -> bool:
        """Whether what was accepted is a whole answer already, though more may follow."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether any token may come next: `allow` would change nothing."""
        ...

    def allow(self, logits: Float32Array) -> None:
        """Set the logits [vocab] of all tokens that may not come next to -inf, in place.

        At least one token stays: where the answer may end, the end-of-answer token among them.

        Raises:
            RejectedError: `output_broken`: nothing may follow, or finding out costs too much.
        """
        ...

    def accept(self, token: int) -> None:
        """Take a token as the next one; it must be allowed. The end-of-answer token is, at an end.

        Raises:
            RejectedError: `output_broken`: the token is not allowed.
        """
        ...

    def forced(self) -> tuple[int, ...]:
        """Return tokens that must come next, in this order; empty where there is a choice.

        They are what the tokenizer itself would make of the forced text. The state is not changed:
        `accept` them one by one. Other tokens of the same text may be allowed, too.
        """
        ...

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens in a row would be accepted; the state is not changed."""
        ...


class OutputGuides(Protocol):
    """Makes guides for one model's vocabulary; compiled forms are kept for the next request."""

    def guide(self, output: OutputFormat) -> OutputGuide:
        """Return a guide at the beginning of an answer.

        Raises:
            RejectedError: `bad_output_format`: the schema or expression is wrong;
                `unsupported_output_format`: it is beyond what can be enforced here.
        """
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose dot product is their likeness, -1..1."""

    @property
    def model(self) -> tuple[str, str]:
        """Name and version of the artefact: vectors of two of them cannot be compared."""
        ...

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Return vectors [texts, dimensions] of length 1. Blocks; some milliseconds a text.

        A text in a language or script that the model does not know gets zeros, which are like
        nothing: embeddings of such texts are all alike, whatever they say.
        """
        ...


class Spool(Protocol):
    """Attempts that survive kill -9. Synchronous: the service calls it in its own executor."""

    def open(self) -> None:
        """Open and migrate; raises SpoolUnavailableError."""
        ...

    def commit(
        self,
        *,
        keep: Iterable[SpooledJob],
        forget: Iterable[tuple[JobKey, int]],
        answers: Iterable[CachedAnswer] = (),
        clear: bool = False,
    ) -> None:
        """Save and delete in one transaction. Raises SpoolUnavailableError.

        `clear` lets all earlier answers go. Where the room does not suffice for all, `answers` and
        those kept before them give way.
        """
        ...

    def load_answers(self) -> list[CachedAnswer]:
        """Return the answers kept, oldest first."""
        ...

    def load(self) -> list[SpooledJob]:
        """Return everything held, oldest first."""
        ...

    def close(self) -> None:
        """Close."""
        ...


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
