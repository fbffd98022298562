"""Answers of a small language model on plain onnxruntime, several requests in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.onnx_graph import KvGraph
from edge_worker.adapters.tokenizer import ChatTokenizer
from edge_worker.core.batching import (
    EngineSettings,
    WaitingLine,
    check_fits,
    close_gap,
    next_chunk,
    plan_context,
)
from edge_worker.core.sampling import Float32Array, Int64Array, choose_token
from edge_worker.core.stopping import AnswerText, StopRule
from edge_worker.ports import Broke, EngineEvent, Finished, GenerationRequest, Grew, ModelError
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage, ModelInfo


class _Row:
    """A request that has a row of the graph's buffers.

    Attributes:
        held_tokens: Positions of the row that are written.
        next_token: Chosen, but not read by the model yet.
    """

    def __init__(self, request: GenerationRequest, stop_tokens: Sequence[int]) -> None:
        wanted = request.generation
        self.request = request
        self.prompt: Int64Array = np.array(request.prompt_tokens, np.int64)
        self.held_tokens = 0
        self.next_token = 0
        self.logprobs: list[float] = []
        self.answer = AnswerText(
            StopRule(tokens=frozenset(stop_tokens), texts=wanted.stop, max_tokens=wanted.max_tokens)
        )
        # Of its own for each request: what it draws does not depend on its neighbours.
        self.generator = np.random.default_rng(wanted.seed) if wanted.temperature > 0 else None


class OnnxEngine:
    """An `InferenceEngine` on an artefact.

    A step reads one chunk of one waiting prompt, then adds one token to every row that generates:
    a long prompt never makes the others wait longer than one chunk. Rows that generate are the
    first ones, without gaps; the row behind them is the one whose prompt is being read.
    """

    def __init__(self, artefact: Artefact, *, settings: EngineSettings | None = None) -> None:
        """Load the model.

        Raises:
            ModelError: With a code and the next step; nothing stays allocated.
        """
        self._settings = settings = settings or EngineSettings()
        manifest = artefact.manifest
        self._stop_tokens = manifest.stop_tokens
        self._tokenizer = ChatTokenizer(
            artefact.tokenizer,
            chat_template=manifest.chat_template,
            stop_tokens=manifest.stop_tokens,
        )
        try:
            context_tokens = plan_context(
                settings, model_tokens=manifest.context_tokens, architecture=manifest.architecture
            )
        except ValueError as error:
            raise ModelError(
                str(error), code="model_memory", hint="raise `memory_mb` or lower `slots`"
            ) from error
        self._graph: KvGraph | None = KvGraph(
            artefact.graph,
            architecture=manifest.architecture,
            context_tokens=context_tokens,
            settings=settings,
        )
        self._model = ModelInfo(
            name=manifest.name,
            version=manifest.version,
            context_tokens=context_tokens,
            sha256=artefact.graph_sha256,
        )
        self._limit = settings.slots
        self._line = WaitingLine()
        self._requests: dict[str, GenerationRequest] = {}
        self._reading: _Row | None = None
        self._generating: list[_Row] = []

    def __repr__(self) -> str:
        return (
            f"OnnxEngine({self._model.name}, generating={len(self._generating)}, "
            f"reading={self._reading is not None}, waiting={len(self._line)})"
        )

    @property
    def model(self) -> ModelInfo:
        """What it answers with; its context is what a row holds here."""
        return self._model

    @property
    def slots(self) -> int:
        """Rows."""
        return self._settings.slots

    @property
    def is_idle(self) -> bool:
        """Whether nothing is read or generates, nor could begin to."""
        at_work = self._reading is not None or bool(self._generating)
        return not at_work and (not self._requests or self._limit == 0)

    def limit_slots(self, count: int) -> None:
        """Let no further request begin while `count` rows are in use; 0: none at all."""
        self._limit = max(0, min(count, self._settings.slots))

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the prompt tokens of a conversation, the answer's beginning included.

        Raises:
            RejectedError: `bad_conversation`: the model's chat template refuses it.
        """
        return self._tokenizer.encode(messages)

    def add(self, request: GenerationRequest) -> None:
        """Let a request wait for a row.

        Raises:
            RejectedError: `too_long`, `empty_prompt`, or `duplicate_request`: the id is in use.
        """
        check_fits(
            prompt_tokens=len(request.prompt_tokens),
            max_tokens=request.generation.max_tokens,
            context_tokens=self._model.context_tokens,
        )
        if request.id in self._requests:
            raise RejectedError(f"request {request.id} is here already", code="duplicate_request")
        self._requests[request.id] = request
        self._line.add(request.id, priority=request.priority)

    def cancel(self, request_id: str) -> None:
        """Drop a request; its row is free at once."""
        if self._requests.pop(request_id, None) is None:
            return
        self._line.remove(request_id)
        if self._reading is not None and self._reading.request.id == request_id:
            self._reading = None
        for place, row in enumerate(self._generating):
            if row.request.id == request_id:
                self._leave(place)
                return

    def step(self) -> list[EngineEvent]:
        """Read one chunk of a prompt and add one token to every generating row."""
        if self._graph is None:
            return []
        events: list[EngineEvent] = []
        self._admit()
        if self._reading is not None:
            self._read_chunk(self._graph, self._reading, events)
        if self._generating:
            self._decode(self._graph, events)
        return events

    def close(self) -> None:
        """Release the model's memory. Whatever was generating is dropped without an event."""
        self._graph = None
        self._generating.clear()
        self._requests.clear()
        self._reading = None
        self._line = WaitingLine()

    def _admit(self) -> None:
        if self._reading is None and len(self._generating) < self._limit:
            name = self._line.take()
            if name is not None:
                self._reading = _Row(self._requests[name], self._stop_tokens)

    def _read_chunk(self, graph: KvGraph, row: _Row, events: list[EngineEvent]) -> None:
        start, end = next_chunk(
            done_tokens=row.held_tokens,
            prompt_tokens=len(row.prompt),
            chunk_tokens=self._settings.prefill_chunk_tokens,
        )
        place = len(self._generating)
        try:
            logits = graph.prefill(place, row.prompt[start:end], start=start)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base
            self._reading = None
            self._break(row, error, events)
            return
        row.held_tokens = end
        if end == len(row.prompt):
            self._reading = None
            self._generating.append(row)
            self._grow(place, logits, events)

    def _decode(self, graph: KvGraph, events: list[EngineEvent]) -> None:
        rows = self._generating
        for place, row in enumerate(rows):
            graph.tokens[place, 0] = row.next_token
            graph.lengths[place] = row.held_tokens
        try:
            logits = graph.decode(len(rows))
        except Exception:  # noqa: BLE001 - onnxruntime's errors share no base
            self._decode_alone(graph, events)
            return
        # From the last to the first: who leaves is replaced by a row that has had its turn.
        for place in reversed(range(len(rows))):
            rows[place].held_tokens += 1
            self._grow(place, logits[place], events)

    def _decode_alone(self, graph: KvGraph, events: list[EngineEvent]) -> None:
        """After a failed batch: run each row by itself, so that only the guilty one breaks."""
        for place in reversed(range(len(self._generating))):
            row = self._generating[place]
            try:
                logits = graph.decode_alone(place)
            except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base
                self._leave(place)
                self._break(row, error, events)
                continue
            row.held_tokens += 1
            self._grow(place, logits, events)

    def _grow(self, place: int, logits: Float32Array, events: list[EngineEvent]) -> None:
        """Choose the next token of a row; it leaves if that ends its answer."""
        row = self._generating[place]
        wanted = row.request.generation
        try:
            choice = choose_token(
                logits,
                temperature=wanted.temperature,
                top_p=wanted.top_p,
                generator=row.generator,
            )
        except ValueError as error:
            self._leave(place)
            self._break(row, error, events)
            return
        row.next_token = choice.token
        row.logprobs.append(choice.logprob)
        text = row.answer.take(choice.token, self._tokenizer.piece(choice.token))
        if text:
            events.append(Grew(row.request.id, text, row.answer.tokens))
        if row.answer.finish is not None:
            self._leave(place)
            self._finish(row, events)

    def _leave(self, place: int) -> None:
        """Free a generating row; the rows stay contiguous."""
        rows = self._generating
        moves = close_gap(leaving=place, generating=len(rows), reading=self._reading is not None)
        for source, target in moves:
            moved = self._reading if source == len(rows) else rows[source]
            if moved is not None and self._graph is not None:
                self._graph.copy_row(source=source, target=target, tokens=moved.held_tokens)
        rows[place] = rows[-1]
        rows.pop()

    def _finish(self, row: _Row, events: list[EngineEvent]) -> None:
        del self._requests[row.request.id]
        finish = row.answer.finish
        if finish is None:
            raise AssertionError("an answer without an end cannot be finished")
        events.append(
            Finished(
                id=row.request.id,
                text=row.answer.text,
                finish=finish,
                prompt_tokens=len(row.prompt),
                cached_tokens=0,
                tokens=row.answer.tokens,
                logprobs=tuple(row.logprobs),
            )
        )

    def _break(self, row: _Row, error: Exception, events: list[EngineEvent]) -> None:
        del self._requests[row.request.id]
        short = isinstance(error, MemoryError) or "allocate" in str(error).lower()
        code = "out_of_memory" if short else "generation_failed"
        events.append(Broke(row.request.id, code, str(error)[:500]))
