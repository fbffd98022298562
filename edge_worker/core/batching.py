"""Which requests work together: who is admitted to a free row, and how a prompt is read in chunks.

Rows of the engine's buffers are numbered from 0. Rows that generate are always the first ones, so
that one run of the graph covers them all without a gap; the request whose prompt is being read has
the row behind them.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Annotated, NamedTuple

import msgspec

from fleet_protocol.errors import RejectedError
from fleet_protocol.manifest import Architecture

BYTES_PER_NUMBER = 4
LEAST_CONTEXT_TOKENS = 128
"""A context below this answers hardly anything: better say that the memory does not suffice."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine may use of the machine.

    The rows reserve slots x max_tokens x 2 x layers x kv_heads x head_dim x 4 bytes of address
    space; a page of it becomes resident when a prompt first reaches it and stays so. With the
    default model (30 layers, 3 heads of 64: 45 KiB a token) the defaults are 377 MB if every row
    was filled once; short requests of 100 tokens touch about 5 MB a row.

    Attributes:
        slots: Requests worked on at once. Each one more makes all together faster and each of
            them slower.
        max_tokens: Most tokens of prompt and answer together; the model's own limit if smaller.
        memory_mb: Most megabytes (10^6 bytes) for the rows; the context shrinks until they fit.
            None: as slots and max_tokens say.
        intra_op_threads: Threads of one run; None: as many as physical cores.
        prefill_chunk_tokens: Prompt tokens read between two steps of the others: more make
            reading faster, fewer make the others wait less.
        provider: `cpu`, or the short name of another execution provider of the installed
            runtime, e.g. `xnnpack`, `acl`.
    """

    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    max_tokens: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 2_048
    memory_mb: Annotated[int, msgspec.Meta(ge=1)] | None = None
    intra_op_threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    prefill_chunk_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 32
    provider: str = "cpu"


def bytes_per_token(architecture: Architecture) -> int:
    """Return the bytes of keys and values that one token of one row takes."""
    numbers = architecture.layers * architecture.kv_heads * architecture.head_dim
    return 2 * numbers * BYTES_PER_NUMBER


def plan_context(settings: EngineSettings, *, model_tokens: int, architecture: Architecture) -> int:
    """Return the tokens a row holds: what the model, the settings and the memory all allow.

    Raises:
        ValueError: The memory does not suffice for `slots` rows of a useful length.
    """
    context_tokens = min(settings.max_tokens, model_tokens)
    if settings.memory_mb is None:
        return context_tokens
    row_bytes = settings.memory_mb * 1_000_000 // settings.slots
    affordable_tokens = row_bytes // bytes_per_token(architecture)
    if affordable_tokens < min(LEAST_CONTEXT_TOKENS, context_tokens):
        raise ValueError(
            f"{settings.memory_mb} MB hold {settings.slots} rows of {affordable_tokens} tokens"
        )
    return min(context_tokens, affordable_tokens)


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


def close_gap(*, leaving: int, generating: int, reading: bool) -> list[RowMove]:
    """Return the moves that keep rows contiguous when row `leaving` of `generating` ones leaves.

    The last generating row takes the free place; a row behind them whose prompt is being read
    moves down by one.
    """
    last = generating - 1
    moves = [RowMove(last, leaving)] if leaving < last else []
    if reading:
        moves.append(RowMove(generating, last))
    return moves


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

    def take(self) -> str | None:
        """Take out and return who is next; None if nobody waits."""
        while self._heap:
            _, arrival, name = heappop(self._heap)
            # Removed ones stay in the heap until they surface.
            if self._arrivals.get(name) == arrival:
                del self._arrivals[name]
                return name
        return None
