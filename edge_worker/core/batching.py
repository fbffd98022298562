"""Which requests work together: who is admitted to a free row, and whose prompt is read next.

Rows of the engine's buffers are numbered from 0. Rows that generate are always the first ones, so
that one run of the graph covers them all without a gap; those whose prompts are being read follow
behind them, without a gap either.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Annotated, NamedTuple

import msgspec

from fleet_protocol.errors import RejectedError
from fleet_protocol.manifest import Architecture

BYTES_PER_NUMBER = 4
LEAST_CONTEXT_TOKENS = 128
"""A context below this answers hardly anything: better say that the memory does not suffice."""
DEFAULT_ROWS_MB = 96
READING_PATIENCE = 16
"""Chunks of shorter prompts that a longer one lets pass before it gets one itself."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine may use of the machine.

    Keys and values take 2 x layers x kv_heads x head_dim x 4 bytes a token: 45 KiB with the default
    model (30 layers, 3 heads of 64), so the defaults keep 2,083 tokens of running requests and 512
    of earlier prompts. A page becomes resident when a token first reaches it; it is given back when
    its request ends.

    Attributes:
        slots: Requests worked on at once. Each one more makes all together faster and each of
            them slower.
        max_tokens: Most tokens of prompt and answer together; the model's own limit if smaller.
        memory_mb: Most megabytes (10^6 bytes) for running requests: one more waits until its
            prompt and its longest answer fit, too. None: 96, or one request of the whole context
            if that is more.
        prefix_mb: Most megabytes for beginnings of prompts (a system prompt, the conversation so
            far) that are kept for later ones; 0: none is kept.
        draft_tokens: Most tokens guessed from prompt and answer and checked in one run while one
            request generates alone; 0: none. What is answered does not change.
        intra_op_threads: Threads of one run; None: as many as physical cores.
        prefill_chunk_tokens: Prompt tokens read between two steps of the others: more make
            reading faster, fewer make the others wait less.
        provider: `cpu`, or the short name of another execution provider of the installed
            runtime, e.g. `xnnpack`, `acl`.
    """

    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    max_tokens: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 2_048
    memory_mb: Annotated[int, msgspec.Meta(ge=1)] | None = None
    prefix_mb: Annotated[int, msgspec.Meta(ge=0)] = 24
    draft_tokens: Annotated[int, msgspec.Meta(ge=0, le=15)] = 7
    intra_op_threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    prefill_chunk_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 32
    provider: str = "cpu"


class MemoryPlan(NamedTuple):
    """What fits.

    Attributes:
        context_tokens: Most tokens of one request, prompt and answer together.
        running_tokens: Most tokens of all running requests together.
        kept_blocks: Blocks of `prefill_chunk_tokens` tokens kept for later prompts.
    """

    context_tokens: int
    running_tokens: int
    kept_blocks: int


def bytes_per_token(architecture: Architecture) -> int:
    """Return the bytes of keys and values that one token of one row takes."""
    numbers = architecture.layers * architecture.kv_heads * architecture.head_dim
    return 2 * numbers * BYTES_PER_NUMBER


def plan_memory(
    settings: EngineSettings, *, model_tokens: int, architecture: Architecture
) -> MemoryPlan:
    """Return what the model, the settings and the memory all allow.

    Raises:
        ValueError: The memory does not suffice for one request of a useful length.
    """
    token_bytes = bytes_per_token(architecture)
    context_tokens = min(settings.max_tokens, model_tokens)
    running_tokens = (settings.memory_mb or DEFAULT_ROWS_MB) * 1_000_000 // token_bytes
    if settings.memory_mb is None:
        running_tokens = max(running_tokens, context_tokens)
    if running_tokens < min(LEAST_CONTEXT_TOKENS, context_tokens):
        raise ValueError(f"{settings.memory_mb} MB hold {running_tokens} tokens")
    block_bytes = token_bytes * settings.prefill_chunk_tokens
    return MemoryPlan(
        context_tokens=min(context_tokens, running_tokens),
        running_tokens=min(running_tokens, settings.slots * context_tokens),
        kept_blocks=settings.prefix_mb * 1_000_000 // block_bytes,
    )


def check_fits(*, prompt_tokens: int, max_tokens: int, context_tokens: int) -> None:
    """Raise RejectedError `too_long` (or `empty_prompt`) for what no row can hold."""
    if prompt_tokens < 1:
        raise RejectedError("the prompt has no tokens", code="empty_prompt")
    if prompt_tokens + max_tokens > context_tokens:
        raise RejectedError(
            f"prompt ({prompt_tokens} tokens) and answer ({max_tokens}) exceed the context of "
            f"{context_tokens} tokens",
            code="too_long",
            hint="shorten the prompt or ask for fewer tokens",
        )


class Chunk(NamedTuple):
    """Prompt tokens `start` to `end` (exclusive) that are read in one run."""

    start: int
    end: int


def next_chunk(*, done_tokens: int, prompt_tokens: int, chunk_tokens: int) -> Chunk:
    """Return what to read next.

    The borders depend on the prompt alone, never on who else is there: rounding differs between
    chunk sizes, and an answer must not depend on its neighbours.
    """
    return Chunk(done_tokens, min(done_tokens + chunk_tokens, prompt_tokens))


class RowMove(NamedTuple):
    """Copy what row `source` holds to row `target`."""

    source: int
    target: int


def close_gap(*, leaving: int, generating: int, rows: int) -> list[RowMove]:
    """Return the moves, in order, that keep rows contiguous when row `leaving` of `rows` leaves.

    The last generating row takes the place of a generating one, and the last of those that are
    read takes the place that is free then.
    """
    if leaving >= generating:
        return [RowMove(rows - 1, leaving)] if leaving < rows - 1 else []
    last = generating - 1
    moves = [RowMove(last, leaving)] if leaving < last else []
    if rows > generating:
        moves.append(RowMove(rows - 1, last))
    return moves


class Reading(NamedTuple):
    """A prompt that is being read.

    Attributes:
        priority: Of its request.
        left_tokens: Still to read.
        passed_over: Chunks of others read since its own last one.
    """

    priority: int
    left_tokens: int
    passed_over: int


def next_reading(readings: Sequence[Reading]) -> int:
    """Return the index of the prompt that gets the next chunk.

    Of the highest priority the one with least left, so that a short prompt does not wait for a long
    one; of equal ones the first. But who was passed over `READING_PATIENCE` times is served, so
    that a long one, too, comes to an end among ever new short ones.
    """
    longest_passed = max(range(len(readings)), key=lambda index: readings[index].passed_over)
    if readings[longest_passed].passed_over >= READING_PATIENCE:
        return longest_passed
    return min(
        range(len(readings)), key=lambda at: (-readings[at].priority, readings[at].left_tokens)
    )


class WaitingLine:
    """Names of waiting requests: highest priority first, then first come, first served."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._arrivals: dict[str, int] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    def __contains__(self, name: str) -> bool:
        return name in self._arrivals

    def add(self, name: str, *, priority: int) -> None:
        """Let a request wait. The name must not be waiting already."""
        self._counter += 1
        self._arrivals[name] = self._counter
        heappush(self._heap, (-priority, self._counter, name))

    def remove(self, name: str) -> None:
        """Forget a request; unknown names are ignored."""
        self._arrivals.pop(name, None)

    def peek(self) -> str | None:
        """Return who is next; None if nobody waits."""
        while self._heap:
            _, arrival, name = self._heap[0]
            # Removed ones stay in the heap until they surface.
            if self._arrivals.get(name) == arrival:
                return name
            heappop(self._heap)
        return None

    def take(self) -> str | None:
        """Take out and return who is next; None if nobody waits."""
        name = self.peek()
        if name is not None:
            heappop(self._heap)
            del self._arrivals[name]
        return name
