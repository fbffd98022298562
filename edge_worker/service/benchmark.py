"""What this worker can do, measured through the engine port itself, and proof that it is right."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

import msgspec

from edge_worker.ports import Broke, EngineEvent, Finished, GenerationRequest, InferenceEngine
from fleet_protocol.errors import FleetError
from fleet_protocol.manifest import GoldenPrompt
from fleet_protocol.messages import ChatMessage, ChatRole, Generation

PREFILL_TOKENS: Final = 256
DECODE_TOKENS: Final = 48
_TEXT: Final = (
    "The sensor in the greenhouse reports a temperature of twenty one degrees and a humidity of "
    "sixty percent; the pump has been running since noon and the valve is half open. "
)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per second, one request alone.

    Attributes:
        decode_tok_s: Generated, after the first.
        prefill_tok_s: Read.
    """

    decode_tok_s: float
    prefill_tok_s: float


class GoldenReport(msgspec.Struct, frozen=True, kw_only=True):
    """How an artefact's golden prompts went here.

    Attributes:
        wrong: Numbers, from 0, of the prompts whose tokens or answer differed.
    """

    checked: int
    wrong: tuple[int, ...]


def measure_speed(engine: InferenceEngine) -> Speed:
    """Return the engine's speed; takes a second or two on a board. The engine must be idle.

    Prefill: a synthetic prompt of `PREFILL_TOKENS` (fewer in a small context) and one token of
    answer. Decode: a short prompt and up to `DECODE_TOKENS`; the time of the prompt, taken from a
    run with one token of answer, is subtracted. One short run before them warms up.
    """
    context = engine.model.context_tokens
    short = _prompt(engine, min(32, context // 4))
    long = _prompt(engine, min(PREFILL_TOKENS, context // 2))
    most = max(2, min(DECODE_TOKENS, context - len(short) - 1))
    _time(engine, short, 2)
    prefill_s, _ = _time(engine, long, 1)
    first_s, _ = _time(engine, short, 1)
    all_s, tokens = _time(engine, short, most)
    decode_s = max(1e-6, all_s - first_s)
    return Speed(
        decode_tok_s=round(max(1, tokens - 1) / decode_s, 2),
        prefill_tok_s=round(len(long) / max(1e-6, prefill_s), 2),
    )


def golden_report(engine: InferenceEngine, golden: Sequence[GoldenPrompt]) -> GoldenReport:
    """Generate the golden prompts greedily and compare with what the artefact promises."""
    wrong = []
    for number, prompt in enumerate(golden):
        turns = [ChatMessage(role=ChatRole(role), content=text) for role, text in prompt.messages]
        tokens = engine.encode(turns)
        finished = _generate(engine, tokens, max(1, len(prompt.expect_tokens)))
        same = finished.text.strip() == prompt.expect_text.strip()
        if len(tokens) != prompt.prompt_tokens or not same:
            wrong.append(number)
    return GoldenReport(checked=len(golden), wrong=tuple(wrong))


def _prompt(engine: InferenceEngine, tokens: int) -> tuple[int, ...]:
    """Return a prompt of about so many tokens, at least a few."""
    text = _TEXT
    encoded = _encode(engine, text)
    while len(encoded) < tokens:
        text += _TEXT
        encoded = _encode(engine, text)
    return encoded[: max(4, tokens)]


def _encode(engine: InferenceEngine, text: str) -> tuple[int, ...]:
    return engine.encode([ChatMessage(role=ChatRole.USER, content=text)])


def _time(engine: InferenceEngine, prompt: tuple[int, ...], max_tokens: int) -> tuple[float, int]:
    """Return the seconds and the number of tokens that an answer took."""
    start_s = perf_counter()
    finished = _generate(engine, prompt, max_tokens)
    return perf_counter() - start_s, finished.tokens


def _generate(engine: InferenceEngine, prompt: tuple[int, ...], max_tokens: int) -> Finished:
    request = GenerationRequest(
        id="selftest", prompt_tokens=prompt, generation=Generation(max_tokens=max_tokens)
    )
    engine.add(request)
    while not engine.is_idle:
        for event in engine.step():
            found = _ending(event)
            if found is not None:
                return found
    raise FleetError("the engine went idle without an answer", code="engine_error")


def _ending(event: EngineEvent) -> Finished | None:
    if isinstance(event, Broke):
        raise FleetError(event.message, code=event.code)
    return event if isinstance(event, Finished) else None
