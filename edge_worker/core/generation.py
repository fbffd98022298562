"""What goes into an inference engine and what comes out of it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from fleet_protocol.confidence import best_possible
from fleet_protocol.manifest import Calibration
from fleet_protocol.messages import FinishReason, Generation


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """When an answer is not worth going on with: nothing that may follow would let it be kept.

    Attributes:
        least: Confidence below which it is sent away, 0..1.
    """

    calibration: Calibration
    least: float

    def is_lost(self, surprise: float, worst: float, *, most_tokens: int, begun: str = "") -> bool:
        """Tell whether an answer with these doubts will be sent away, however it goes on."""
        fitted = self.calibration
        best = best_possible(
            surprise, worst, most_tokens=most_tokens, calibration=fitted, begun=begun
        )
        return best < self.least


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate.

    Attributes:
        id: Name of the request, unique in the engine while it is there.
        prompt_tokens: Token ids of the whole prompt, chat template applied.
        priority: 0..9, higher is admitted first.
        trust: Give the answer up as soon as it is lost; None: generate all of it.
        stream: Somebody watches the text grow. If not, an engine may spare the `Grew` of the step
            that finishes: `Finished` says it all.
    """

    id: str
    prompt_tokens: tuple[int, ...]
    generation: Generation
    priority: int = 5
    stream: bool = True
    trust: Trust | None = None


class Grew(msgspec.Struct, frozen=True):
    """Text was generated: whole characters only, and none that a stop text may still take back.

    Attributes:
        tokens: Generated so far, those of hidden calculations included.
    """

    id: str
    text: str
    tokens: int


class Finished(msgspec.Struct, frozen=True):
    """The answer is complete.

    Attributes:
        text: All of it, without the stop text and without calculations.
        prompt_tokens: Read; `cached_tokens` of them came from the prefix cache.
        tokens: Generated, those of hidden calculations included.
        logprobs: Natural log-probability under the model, before temperature, of each generated
            token that it had a choice about, the end-of-answer token included. What a form or a
            calculation forces says nothing of its doubts.
        gave_up: The text is only a beginning: see `Trust`.
        fits_output: Whether the text is a whole answer of the form that was asked for; always,
            where none was. False where `max_tokens` ended it halfway.
    """

    id: str
    text: str
    finish: FinishReason
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    logprobs: tuple[float, ...]
    fits_output: bool = True
    gave_up: bool = False


class Broke(msgspec.Struct, frozen=True):
    """This request failed; the others go on."""

    id: str
    code: str
    message: str


EngineEvent: TypeAlias = Grew | Finished | Broke
