"""What this worker can do, measured through the engine port itself, and proof that it is right."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Final

import msgspec

from edge_worker.core.tuning import spread_of
from edge_worker.ports import Broke, EngineEvent, Finished, GenerationRequest, InferenceEngine
from fleet_protocol.errors import FleetError
from fleet_protocol.manifest import GoldenPrompt
from fleet_protocol.messages import ChatMessage, ChatRole, Generation

BUDGET_S: Final = 1.6
"""About how long one measurement takes on any board: slow ones read and write less in it."""
PREFILL_TOKENS: Final = 256
DECODE_TOKENS: Final = 48
_SHORT_TOKENS: Final = 32
_WINDOWS: Final = 3
_PROMPTS_MOST: Final = 8
_TEXT: Final = (
    "The sensor in the greenhouse reports a temperature of twenty one degrees and a humidity of "
    "sixty percent; the pump has been running since noon and the valve is half open. "
)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per second, one request alone.

    Attributes:
        decode_tok_s: Generated, after the first; the median of some windows.
        prefill_tok_s: Read; the better of two prompts.
        spread: Between the windows, relative to their median: what disturbed them.
    """

    decode_tok_s: float
    prefill_tok_s: float
    spread: float = 0.0


class GoldenReport(msgspec.Struct, frozen=True, kw_only=True):
    """How an artefact's golden prompts went here.

    Attributes:
        wrong: Numbers, from 0, of the prompts whose tokens or answer differed.
        miscounted: Those of them whose prompt became another number of tokens.
    """

    checked: int
    wrong: tuple[int, ...]
    miscounted: tuple[int, ...] = ()


def measure_speed(engine: InferenceEngine, *, budget_s: float = BUDGET_S) -> Speed:
    """Return the engine's speed; takes about `budget_s`. The engine must be idle.

    Answers are sampled and every prompt begins otherwise, so that neither what the engine keeps of
    earlier prompts nor guesses from repetitions make it look faster than it is.
    """
    return _Bench(engine).measure(budget_s)


def golden_report(engine: InferenceEngine, golden: Sequence[GoldenPrompt]) -> GoldenReport:
    """Generate the golden prompts greedily and compare with what the artefact promises."""
    wrong, miscounted = [], []
    for number, prompt in enumerate(golden):
        turns = [ChatMessage(role=ChatRole(role), content=text) for role, text in prompt.messages]
        tokens = engine.encode(turns)
        if len(tokens) != prompt.prompt_tokens:
            miscounted.append(number)
        if number in miscounted or not _is_answered(engine, tokens, prompt):
            wrong.append(number)
    return GoldenReport(checked=len(golden), wrong=tuple(wrong), miscounted=tuple(miscounted))


def _is_answered(engine: InferenceEngine, tokens: tuple[int, ...], golden: GoldenPrompt) -> bool:
    """Tell whether the answer is the promised one; where nothing is promised, every one is."""
    # Tokens of calculations do not count as an answer's length.
    shown_tokens = len(golden.expect_tokens) - golden.hidden_tokens
    if shown_tokens < 1:
        return True
    finished = _Run(engine, tokens, Generation(max_tokens=shown_tokens)).finished
    return finished.text.strip() == golden.expect_text.strip()


class _Run:
    """One request, generated alone.

    Attributes:
        span_s: From its arrival to its end.
        first_s, first_tokens: From its arrival to its first text, and the tokens of that.
    """

    def __init__(
        self, engine: InferenceEngine, prompt: tuple[int, ...], wanted: Generation
    ) -> None:
        """Raises FleetError `engine_error`, or the engine's own code."""
        begin_s = perf_counter()
        self.first_s, self.first_tokens = 0.0, 0
        found: Finished | None = None
        engine.add(GenerationRequest(id="selftest", prompt_tokens=prompt, generation=wanted))
        while found is None and not engine.is_idle:
            events = engine.step()
            # Of a whole step: between the events of one no time passes that says anything.
            told = max((x.tokens for x in events if not isinstance(x, Broke)), default=0)
            if told and not self.first_tokens:
                self.first_s, self.first_tokens = perf_counter() - begin_s, told
            for event in events:
                found = _ending(event) or found
        if found is None:
            raise FleetError("the engine went idle without an answer", code="engine_error")
        self.span_s = perf_counter() - begin_s
        self.finished = found


class _Bench:
    """Puts prompts to an engine, no two alike."""

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._context_tokens = engine.model.context_tokens
        self._prompts = 0
        # Tokens a second, as far as known: how many to ask for so that a window suffices.
        self._rate = 20.0

    def measure(self, budget_s: float) -> Speed:
        """Warm up, read twice, write in some windows; each takes its share of the budget."""
        rough = self._prefill(_SHORT_TOKENS)
        share_s = budget_s / (2 + _WINDOWS)
        length = max(_SHORT_TOKENS, min(PREFILL_TOKENS, int(rough * share_s)))
        prefill = max(self._prefill(length), self._prefill(length))
        windows: list[float] = []
        until_s = perf_counter() + budget_s
        # On a machine that gives this process hardly any time, one window has to do.
        while not windows or (len(windows) < _WINDOWS and perf_counter() < until_s):
            windows.append(self._decode(share_s))
        return Speed(
            decode_tok_s=round(median(windows), 2),
            prefill_tok_s=round(prefill, 2),
            spread=round(spread_of(windows), 3),
        )

    def _prefill(self, tokens: int) -> float:
        prompt = self._prompt(min(tokens, self._context_tokens // 2))
        run = _Run(self._engine, prompt, Generation(max_tokens=1))
        return (len(prompt) - run.finished.cached_tokens) / max(1e-6, run.span_s)

    def _decode(self, window_s: float) -> float:
        """Return the rate between first and last text, of as many prompts as the window needs."""
        tokens, span_s = 0, 0.0
        for _ in range(_PROMPTS_MOST):
            prompt = self._prompt(min(_SHORT_TOKENS, self._context_tokens // 4))
            run = _Run(self._engine, prompt, self._wanted(len(prompt), window_s))
            later = run.finished.tokens - run.first_tokens
            if later <= 0:
                # It all came at once: count from the beginning.
                tokens, span_s = tokens + run.finished.tokens, span_s + run.span_s
            else:
                tokens, span_s = tokens + later, span_s + run.span_s - run.first_s
            if span_s >= window_s / 2 or tokens >= DECODE_TOKENS:
                break
        self._rate = tokens / max(1e-6, span_s)
        return self._rate

    def _wanted(self, prompt_tokens: int, window_s: float) -> Generation:
        room = self._context_tokens - prompt_tokens - 1
        most = max(2, min(DECODE_TOKENS, room, int(self._rate * window_s)))
        return Generation(max_tokens=most, temperature=1.0, seed=self._prompts)

    def _prompt(self, tokens: int) -> tuple[int, ...]:
        """Return a prompt of about so many tokens, at least a few."""
        self._prompts += 1
        text = f"{self._prompts * 7919} "
        encoded: tuple[int, ...] = ()
        while len(encoded) < tokens:
            text += _TEXT
            turn = ChatMessage(role=ChatRole.USER, content=text)
            encoded = self._engine.encode([turn])
        return encoded[: max(4, tokens)]


def _ending(event: EngineEvent) -> Finished | None:
    """Return the event if it ends the request; raises FleetError if it broke."""
    if isinstance(event, Broke):
        raise FleetError(f"the engine broke: {event.message}", code=event.code)
    return event if isinstance(event, Finished) else None
