"""An engine without a model: it answers with the prompt's own text.

It ships for trying the queue without a model, for measuring what everything around the model costs,
and for tests; it passes the same contract suite as the real one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from edge_worker.core.batching import WaitingLine, check_fits
from edge_worker.core.stopping import AnswerText, StopRule
from edge_worker.ports import EngineEvent, Finished, GenerationRequest, Grew
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage, ModelInfo, OutputFormat

BYTES_PER_TOKEN = 4
"""About what a token of English text is worth in a real model."""

PADDING = b"\xff"
"""Fills the last token up; no byte of UTF-8 has this value."""


def to_tokens(text: str) -> tuple[int, ...]:
    """Return one token per 4 bytes of UTF-8."""
    data = text.encode()
    data += PADDING * (-len(data) % BYTES_PER_TOKEN)
    return struct.unpack(f"<{len(data) // BYTES_PER_TOKEN}I", data)


def to_bytes(tokens: Sequence[int]) -> bytes:
    """Return the bytes tokens stand for; they may begin and end within a character."""
    return struct.pack(f"<{len(tokens)}I", *tokens).rstrip(PADDING)


def recite(prompt: bytes, output: OutputFormat) -> str:
    """Return the prompt in the form that was asked for: the first choice in it, or as JSON.

    Raises:
        RejectedError: `unsupported_output_format`: it would take a model.
    """
    text = prompt.decode(errors="replace")
    if output.choices is not None:
        named = [choice for choice in output.choices if choice in text]
        return (named or output.choices)[0]
    if output.json:
        return json.dumps({"echo": text}, ensure_ascii=False)
    raise RejectedError(
        "the echo engine knows no schema and no expression",
        code="unsupported_output_format",
        hint="ask for choices or a JSON object, or run with a model",
    )


class _Row:
    def __init__(self, request: GenerationRequest, said: tuple[int, ...]) -> None:
        self.request = request
        self.said = said
        self.answer = AnswerText(
            StopRule(texts=request.generation.stop, max_tokens=request.generation.max_tokens)
        )


class EchoEngine:
    """An `InferenceEngine` that costs next to nothing and is always sure of itself.

    Temperature, top_p and seed change nothing.
    """

    def __init__(
        self, *, slots: int = 4, context_tokens: int = 4_096, tokens_per_step: int = 64
    ) -> None:
        """Answer.

        Args:
            slots: Requests worked on at once.
            context_tokens: Most tokens of prompt and answer together.
            tokens_per_step: Tokens each of them grows by in one step.
        """
        self._slots = self._limit = slots
        self._tokens_per_step = tokens_per_step
        self._model = ModelInfo(name="echo", version="1", context_tokens=context_tokens)
        self._line = WaitingLine()
        self._requests: dict[str, _Row] = {}
        self._rows: dict[str, _Row] = {}

    def __repr__(self) -> str:
        return f"EchoEngine(generating={len(self._rows)}, waiting={len(self._line)})"

    @property
    def model(self) -> ModelInfo:
        """The model named `echo`."""
        return self._model

    @property
    def slots(self) -> int:
        """Requests worked on at once."""
        return self._slots

    @property
    def is_idle(self) -> bool:
        """Whether nothing generates, nor could begin to."""
        return not self._rows and (not self._requests or self._limit == 0)

    def limit_slots(self, count: int) -> None:
        """Let no further request begin while `count` generate; 0: none at all."""
        self._limit = max(0, min(count, self._slots))

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the tokens of all turns' text, one turn a line."""
        return to_tokens("\n".join(turn.content for turn in messages))

    def kept_tokens(self, prompt_tokens: tuple[int, ...]) -> int:
        """Return 0: it keeps nothing of a prompt."""
        _ = prompt_tokens
        return 0

    def add(self, request: GenerationRequest) -> None:
        """Let a request wait for a slot.

        Raises:
            RejectedError: `too_long`, `empty_prompt`, `duplicate_request`: the id is in use, or
                `unsupported_output_format`.
        """
        check_fits(
            prompt_tokens=len(request.prompt_tokens),
            max_tokens=request.generation.max_tokens,
            context_tokens=self._model.context_tokens,
        )
        if request.id in self._requests:
            raise RejectedError(f"request {request.id} is here already", code="duplicate_request")
        output = request.generation.output
        said = request.prompt_tokens
        if output is not None:
            said = to_tokens(recite(to_bytes(said), output))
        self._requests[request.id] = _Row(request, said)
        self._line.add(request.id, priority=request.priority)

    def cancel(self, request_id: str) -> None:
        """Drop a request."""
        self._requests.pop(request_id, None)
        self._rows.pop(request_id, None)
        self._line.remove(request_id)

    def step(self) -> list[EngineEvent]:
        """Let every slot's answer grow by `tokens_per_step` tokens."""
        while len(self._rows) < self._limit:
            name = self._line.take()
            if name is None:
                break
            self._rows[name] = self._requests[name]
        events: list[EngineEvent] = []
        for row in list(self._rows.values()):
            self._grow(row, events)
        return events

    def close(self) -> None:
        """Forget everything."""
        self._requests.clear()
        self._rows.clear()
        self._line = WaitingLine()

    def _grow(self, row: _Row, events: list[EngineEvent]) -> None:
        request, answer = row.request, row.answer
        said = row.said
        limit = min(len(said), request.generation.max_tokens)
        # Token by token only where a stop text may end the answer between two of them.
        stride = 1 if request.generation.stop else self._tokens_per_step
        end = min(answer.tokens + self._tokens_per_step, limit)
        text = ""
        while answer.tokens < end and answer.finish is None:
            some = said[answer.tokens : min(answer.tokens + stride, end)]
            text += answer.take(some[-1], to_bytes(some), count=len(some))
        if answer.finish is None and answer.tokens == len(said):
            text += answer.end()
        if text and (request.stream or answer.finish is None):
            events.append(Grew(request.id, text, answer.tokens))
        if answer.finish is not None:
            events.append(
                Finished(
                    id=request.id,
                    text=answer.text,
                    finish=answer.finish,
                    prompt_tokens=len(request.prompt_tokens),
                    cached_tokens=0,
                    tokens=answer.tokens,
                    logprobs=(0.0,) * answer.tokens,
                    fits_output=request.generation.output is None or answer.tokens == len(said),
                )
            )
            del self._rows[request.id]
            del self._requests[request.id]
