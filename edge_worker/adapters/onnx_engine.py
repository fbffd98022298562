"""Answers of a small language model on plain onnxruntime, several requests in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.calculations import AnswerGuides
from edge_worker.adapters.onnx_graph import KvGraph
from edge_worker.adapters.onnx_row import Row
from edge_worker.adapters.output_guide import GrammarGuides
from edge_worker.adapters.tokenizer import ChatTokenizer
from edge_worker.core.batching import (
    EngineSettings,
    MemoryPlan,
    Reading,
    WaitingLine,
    check_fits,
    close_gap,
    next_chunk,
    next_reading,
    plan_memory,
)
from edge_worker.core.prefixes import PrefixTree
from edge_worker.core.sampling import Float32Array
from edge_worker.ports import (
    Broke,
    EngineEvent,
    GenerationRequest,
    Grew,
    ModelError,
    OutputGuides,
)
from fleet_protocol.errors import FleetError, RejectedError
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import ChatMessage, ModelInfo


class OnnxEngine:
    """An `InferenceEngine` on an artefact.

    A step reads one chunk of one prompt, then adds at least one token to every row that generates:
    a long prompt never makes the others wait longer than one chunk. Rows that generate are the
    first ones, without gaps; those whose prompts are being read follow behind them.

    A request gets the same tokens whoever else is there, whatever prompts were kept, and whether
    or not tokens are drafted: see `KvGraph` and `PrefixTree` for why that needs care.

    Where the manifest says that the model writes calculations down, those of a free answer, or one
    in front of a choice or an expression, are computed and hidden. They cost a request none of its
    `max_tokens`: up to `SPARE_TOKENS` of theirs are generated on top, as far as there is room.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        settings: EngineSettings | None = None,
        guides: OutputGuides | None = None,
    ) -> None:
        """Load the model.

        Args:
            artefact: What to load.
            settings: What it may use of the machine.
            guides: Hold answers to a form; None: `GrammarGuides`, on the model's own tokenizer.

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
            data=artefact.tokenizer_bytes,
        )
        forms = guides or GrammarGuides(
            self._tokenizer, vocab=manifest.architecture.vocab, stop_tokens=manifest.stop_tokens
        )
        self._guides = AnswerGuides(forms, self._tokenizer, calculates=manifest.calculates)
        self._plan = plan = _plan(settings, manifest)
        self._graph: KvGraph | None = KvGraph(
            artefact.graph,
            architecture=manifest.architecture,
            plan=plan,
            settings=settings,
            graph=artefact.graph_bytes,
            weights=artefact.weights,
        )
        self._model = ModelInfo(
            name=manifest.name,
            version=manifest.version,
            context_tokens=plan.context_tokens,
            sha256=artefact.graph_sha256,
        )
        self._prefixes = PrefixTree(
            blocks=plan.kept_blocks, block_tokens=settings.prefill_chunk_tokens
        )
        self._limit = settings.slots
        self._line = WaitingLine()
        self._requests: dict[str, Row] = {}
        # The first `_generating` of them generate, the others are being read.
        self._rows: list[Row] = []
        self._generating = 0

    def __repr__(self) -> str:
        return (
            f"OnnxEngine({self._model.name}, generating={self._generating}, "
            f"reading={len(self._rows) - self._generating}, waiting={len(self._line)})"
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
        return not self._rows and (not self._requests or self._limit == 0)

    def limit_slots(self, count: int) -> None:
        """Let no further request begin while `count` rows are in use; 0: none at all."""
        self._limit = max(0, min(count, self._settings.slots))

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the prompt tokens of a conversation, the answer's beginning included.

        Raises:
            RejectedError: `bad_conversation`: the model's chat template refuses it.
        """
        return self._tokenizer.encode(messages)

    def kept_tokens(self, prompt_tokens: tuple[int, ...]) -> int:
        """Return how many tokens, from the start of a prompt, are kept of earlier ones."""
        return len(self._prefixes.match(prompt_tokens)) * self._settings.prefill_chunk_tokens

    def add(self, request: GenerationRequest) -> None:
        """Let a request wait for a row.

        Raises:
            RejectedError: `too_long`, `empty_prompt`, `duplicate_request`: the id is in use,
                `bad_output_format` or `unsupported_output_format`.
        """
        wanted, prompt_tokens = request.generation, len(request.prompt_tokens)
        context_tokens = self._model.context_tokens
        check_fits(
            prompt_tokens=prompt_tokens,
            max_tokens=wanted.max_tokens,
            context_tokens=context_tokens,
        )
        if request.id in self._requests:
            raise RejectedError(f"request {request.id} is here already", code="duplicate_request")
        held = self._guides.begin(
            wanted.output, room_tokens=context_tokens - prompt_tokens - wanted.max_tokens
        )
        self._requests[request.id] = Row(
            request,
            stop_tokens=self._stop_tokens,
            held=held,
            draft_tokens=self._graph.draft_tokens if self._graph is not None else 0,
        )
        self._line.add(request.id, priority=request.priority)

    def cancel(self, request_id: str) -> None:
        """Drop a request; its row is free at once."""
        row = self._requests.pop(request_id, None)
        if row is None:
            return
        self._line.remove(request_id)
        if row in self._rows:
            self._leave(self._rows.index(row))

    def step(self) -> list[EngineEvent]:
        """Read one chunk of a prompt and add one token or more to every generating row."""
        if self._graph is None:
            return []
        events: list[EngineEvent] = []
        self._admit()
        if len(self._rows) > self._generating:
            self._read_chunk(self._graph, events)
        if self._generating:
            self._decode(self._graph, events)
        return events

    def close(self) -> None:
        """Release the model's memory. Whatever was generating is dropped without an event."""
        self._graph = None
        self._generating = 0
        self._rows.clear()
        self._requests.clear()
        self._line = WaitingLine()

    def _admit(self) -> None:
        """Give rows to who waits, best first, as long as rows and memory suffice."""
        reserved = sum(row.reserved_tokens for row in self._rows)
        while len(self._rows) < self._limit:
            name = self._line.peek()
            if name is None:
                return
            row = self._requests[name]
            reserved += row.reserved_tokens
            # Who does not fit holds those behind it up, or it might wait for ever.
            if reserved > self._plan.running_tokens:
                return
            self._line.take()
            self._rows.append(row)

    def _read_chunk(self, graph: KvGraph, events: list[EngineEvent]) -> None:
        reading = self._rows[self._generating :]
        chosen = next_reading(
            [Reading(row.request.priority, row.left_tokens, row.passed_over) for row in reading]
        )
        for row in reading:
            row.passed_over += 1
        row, place = reading[chosen], self._generating + chosen
        row.passed_over = 0
        self._use_kept(graph, row, place)
        start, end = next_chunk(
            done_tokens=row.held_tokens,
            prompt_tokens=len(row.prompt),
            chunk_tokens=self._settings.prefill_chunk_tokens,
        )
        try:
            logits = graph.prefill(place, row.prompt[start:end], start=start)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base
            self._break(place, error, events)
            return
        row.held_tokens = end
        for block, first in self._prefixes.keep(row.request.prompt_tokens, tokens=end):
            graph.keep_block(block, row=place, start=first)
        if end == len(row.prompt):
            self._grow(self._join(graph, place), logits, events)

    def _use_kept(self, graph: KvGraph, row: Row, place: int) -> None:
        """Copy what is kept of the prompt's next chunks, so that they need not be read."""
        size = self._settings.prefill_chunk_tokens
        blocks = self._prefixes.match(row.request.prompt_tokens)
        for block in blocks[row.held_tokens // size :]:
            graph.use_block(block, row=place, start=row.held_tokens)
            row.held_tokens += size
            row.cached_tokens += size

    def _join(self, graph: KvGraph, place: int) -> int:
        """Let a row whose prompt is read generate; return its new place."""
        rows, target = self._rows, self._generating
        if place != target:
            longest = max(rows[place].held_tokens, rows[target].held_tokens)
            graph.swap_rows(place, target, tokens=longest)
            rows[place], rows[target] = rows[target], rows[place]
        self._generating += 1
        return target

    def _decode(self, graph: KvGraph, events: list[EngineEvent]) -> None:
        rows = self._rows[: self._generating]
        # Alone only: several rows keep the processor busy, and a guess would slow the others down.
        draft = rows[0].draft(graph.draft_tokens) if len(rows) == 1 else ()
        first = len(draft)
        for place, row in enumerate(rows):
            entry = first + place if place else 0
            graph.tokens[entry, 0] = row.next_token
            graph.lengths[entry] = row.held_tokens
        for place, token in enumerate(draft, start=1):
            graph.tokens[place, 0] = token
            graph.lengths[place] = rows[0].held_tokens + place
        try:
            logits = graph.decode(len(rows), drafted=first)
        except Exception:  # noqa: BLE001 - onnxruntime's errors share no base
            self._decode_alone(graph, events)
            return
        # From the last to the first: who leaves is replaced by a row that has had its turn.
        for place in reversed(range(1, len(rows))):
            rows[place].held_tokens += 1
            self._grow(place, logits[first + place], events)
        self._grow_drafted(draft, logits, events)

    def _grow_drafted(
        self, draft: tuple[int, ...], logits: Float32Array, events: list[EngineEvent]
    ) -> None:
        """Let the first row grow as far as what it chooses is what was drafted."""
        row, accepted = self._rows[0], 0
        for place in range(len(draft) + 1):
            row.held_tokens += 1
            self._grow(0, logits[place], events)
            is_over = row.request.id not in self._requests
            if is_over or place == len(draft) or row.next_token != draft[place]:
                break
            accepted += 1
        row.record_draft(len(draft), accepted=accepted)

    def _decode_alone(self, graph: KvGraph, events: list[EngineEvent]) -> None:
        """After a failed batch: run each row by itself, so that only the guilty one breaks."""
        for place in reversed(range(self._generating)):
            row = self._rows[place]
            graph.tokens[place, 0] = row.next_token
            graph.lengths[place] = row.held_tokens
            try:
                logits = graph.decode_alone(place)
            except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base
                self._break(place, error, events)
                continue
            row.held_tokens += 1
            self._grow(place, logits, events)

    def _grow(self, place: int, logits: Float32Array, events: list[EngineEvent]) -> None:
        """Choose the next token of a row; it leaves if that ends its answer."""
        row = self._rows[place]
        try:
            text = row.take(logits, self._tokenizer.piece)
        except (ValueError, FleetError) as error:
            self._break(place, error, events)
            return
        if text:
            events.append(Grew(row.request.id, text, row.answer.tokens))
        if row.answer.finish is not None:
            self._leave(place)
            del self._requests[row.request.id]
            events.append(row.finished())

    def _leave(self, place: int) -> None:
        """Free a row; the others stay contiguous."""
        rows, graph = self._rows, self._graph
        moves = close_gap(leaving=place, generating=self._generating, rows=len(rows))
        for source, target in moves:
            rows[target] = rows[source]
            if graph is not None:
                graph.release_row(target)
                graph.copy_row(source=source, target=target, tokens=rows[target].held_tokens)
        rows.pop()
        self._generating -= place < self._generating
        if graph is not None:
            graph.release_row(len(rows))

    def _break(self, place: int, error: Exception, events: list[EngineEvent]) -> None:
        row = self._rows[place]
        self._leave(place)
        del self._requests[row.request.id]
        short = isinstance(error, MemoryError) or "allocate" in str(error).lower()
        code = "out_of_memory" if short else "generation_failed"
        if isinstance(error, FleetError):
            code = error.code
        events.append(Broke(row.request.id, code, str(error)[:500]))


def _plan(settings: EngineSettings, manifest: Manifest) -> MemoryPlan:
    try:
        return plan_memory(
            settings, model_tokens=manifest.context_tokens, architecture=manifest.architecture
        )
    except ValueError as error:
        raise ModelError(
            str(error), code="model_memory", hint="raise `memory_mb` or lower `max_tokens`"
        ) from error
