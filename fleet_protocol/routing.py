"""Where a job is answered: the one rule, asked by the worker and by the dispatcher.

The worker asks with the exact token count of its own tokenizer, the dispatcher with a lower bound
taken from the length of the text, against the largest context in the fleet. Length is a capacity
limit and nothing more: a long prompt that fits is answered at the edge, and whether the answer is
good enough is for `judge` to say when it is there.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from fleet_protocol.manifest import Calibration
from fleet_protocol.messages import Escalate, Privacy, Reason

CHARS_PER_TOKEN_MOST: Final = 8
"""Ordinary text has 3 to 5 characters a token with today's vocabularies; hardly any has 8."""


class RoutePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is trusted with.

    Attributes:
        context_tokens: Most tokens of prompt and answer together.
        max_prompt_tokens: Longest prompt; None: whatever the context holds.
        max_difficulty: Prompts above it are escalated untried, 0..1; 1 tries all.
        min_confidence: Answers below it are escalated, 0..1; 0 trusts every answer.
        calibration: What makes a confidence of the signs of an answer.
        refusals: Answers by which the model says that it should not try.
        languages: That it was made for, as ISO 639-1; none: nobody said.
    """

    context_tokens: int
    max_prompt_tokens: int | None = None
    max_difficulty: float = 1.0
    min_confidence: float = 0.0
    calibration: Calibration | None = None
    refusals: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer takes on this board as far as can be told, and what time there is for it.

    Attributes:
        waiting_ms: For those that are before it.
        reading_ms: For what of the prompt must be read.
        writing_ms: For an answer as long as answers here usually are.
        left_ms: Until it is worthless.
    """

    waiting_ms: float = 0.0
    reading_ms: float
    writing_ms: float
    left_ms: float

    @property
    def needed_ms(self) -> float:
        """All of it, from now on."""
        return self.waiting_ms + self.reading_ms + self.writing_ms


class RouteQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What the rule needs to know of a job.

    Attributes:
        prompt_tokens: Exact, or a lower bound (`least_prompt_tokens`).
        max_tokens: Most tokens of answer that were asked for.
        supported: Whether the model that the job names is here.
        difficulty: How likely the model is to answer the prompt wrongly, 0..1; None: nobody knows.
        timing: None: there is no deadline, or nobody knows how fast the board is.
        foreign_script: That most of the prompt is in, though none of the model's languages is
            written in it (`fleet_protocol.scripts`); None: there is no such script.
    """

    prompt_tokens: int
    max_tokens: int
    escalate: Escalate = Escalate.AUTO
    privacy: Privacy = Privacy.ANY
    supported: bool = True
    difficulty: float | None = None
    timing: Timing | None = None
    foreign_script: str | None = None

    @property
    def may_escalate(self) -> bool:
        """Whether the device lets the cloud see the prompt."""
        return self.privacy is Privacy.ANY and self.escalate is not Escalate.NEVER


class Local(msgspec.Struct, frozen=True):
    """Answer here, or keep the answer that is here."""


class EscalateTo(msgspec.Struct, frozen=True, kw_only=True):
    """Hand the job to the cloud.

    Attributes:
        detail: For people: the figures that decided.
    """

    reason: Reason
    detail: str = ""


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """It cannot be answered here and may not leave: a failure that no retry on a like board mends.

    Attributes:
        reason: Its value is the code that the device is told.
    """

    reason: Reason
    detail: str = ""


Route: TypeAlias = Local | EscalateTo | Refuse

LOCAL: Final = Local()


def least_prompt_tokens(prompt_chars: int) -> int:
    """Return a number of tokens that a prompt of so many characters has at least.

    Conservative on purpose: a job that looks too long by this measure is too long by any.
    """
    return prompt_chars // CHARS_PER_TOKEN_MOST


def decide(query: RouteQuery, policy: RoutePolicy) -> Route:
    """Say where a job is answered, before anything is generated.

    In this order: what was requested, what fits, what will be in time, what is supported, what
    looks too hard. A job that may not leave (`privacy` site, `escalate` never) never escalates: it
    is answered here, or refused if it cannot be. What may only be late or foreign is tried.
    """
    if query.escalate is Escalate.ALWAYS and query.may_escalate:
        return EscalateTo(reason=Reason.REQUESTED, detail="the job asks for the cloud")
    excess = _excess(query, policy)
    if excess:
        return _leave(query, Reason.TOO_LONG, excess)
    late = _lateness(query)
    if late and query.may_escalate:
        return EscalateTo(reason=Reason.TOO_SLOW, detail=late)
    if not query.supported:
        return _leave(query, Reason.UNSUPPORTED, "the model that the job names is not here")
    return _look_at_prompt(query, policy) if query.may_escalate else LOCAL


def judge(
    text: str, confidence: float | None, query: RouteQuery, policy: RoutePolicy
) -> Local | EscalateTo:
    """Say whether a finished edge answer is good enough to be the answer.

    An answer without a confidence is kept: there is nothing to hold against it. A job that may
    not leave gets the model's refusal as its answer: it is an honest one.
    """
    if not query.may_escalate:
        return LOCAL
    if text.strip() in policy.refusals:
        return EscalateTo(
            reason=Reason.UNSUPPORTED, detail="the model says that it should not try this"
        )
    if confidence is None or confidence >= policy.min_confidence:
        return LOCAL
    return EscalateTo(
        reason=Reason.LOW_CONFIDENCE,
        detail=f"confidence {confidence:.3f} is below {policy.min_confidence:.3f}",
    )


def _look_at_prompt(query: RouteQuery, policy: RoutePolicy) -> Local | EscalateTo:
    if query.foreign_script is not None:
        known = ", ".join(policy.languages)
        detail = f"the prompt is in {query.foreign_script} script, the model was made for {known}"
        return EscalateTo(reason=Reason.UNSUPPORTED, detail=detail)
    hardness = query.difficulty
    if hardness is not None and hardness > policy.max_difficulty:
        return EscalateTo(
            reason=Reason.COMPLEX,
            detail=f"difficulty {hardness:.3f} is above {policy.max_difficulty:.3f}",
        )
    return LOCAL


def _excess(query: RouteQuery, policy: RoutePolicy) -> str:
    """Say what does not fit; empty if all does."""
    most = policy.max_prompt_tokens
    if most is not None and query.prompt_tokens > most:
        return f"{query.prompt_tokens} prompt tokens, trusted with {most}"
    needed = query.prompt_tokens + query.max_tokens
    if needed > policy.context_tokens:
        return (
            f"{query.prompt_tokens} prompt and {query.max_tokens} answer tokens, "
            f"the context holds {policy.context_tokens}"
        )
    return ""


def _lateness(query: RouteQuery) -> str:
    """Say what takes more time than there is; empty if nothing does."""
    timing = query.timing
    if timing is None or timing.needed_ms <= timing.left_ms:
        return ""
    parts = {
        "waiting": timing.waiting_ms,
        "reading the prompt": timing.reading_ms,
        "a usual answer": timing.writing_ms,
    }
    words = ", ".join(f"{name} {ms / 1_000:.2f} s" for name, ms in parts.items() if ms)
    return f"{words}; {timing.left_ms / 1_000:.2f} s are left"


def _leave(query: RouteQuery, reason: Reason, detail: str) -> EscalateTo | Refuse:
    if query.may_escalate:
        return EscalateTo(reason=reason, detail=detail)
    return Refuse(reason=reason, detail=detail)
