"""What is said of an attempt at its end, as a function of how it went."""

from __future__ import annotations

from typing import Final

import msgspec

from edge_worker.core.attempt import HeldJob, Outcome, SpooledJob
from edge_worker.core.difficulty import DifficultyModel
from edge_worker.core.generation import Broke, Finished, Trust
from fleet_protocol import messages as m
from fleet_protocol import routing, topics
from fleet_protocol.confidence import confidence
from fleet_protocol.scripts import foreign_script
from fleet_protocol.topics import Channel

_NOTE_CHARS: Final = 2_000
_CODE_CHARS: Final = 64
_BAD_FORM: Final = "bad_output_format"
_UNSUPPORTED_FORM: Final = "unsupported_output_format"


def channel_of(outcome: Outcome) -> Channel:
    """Return the channel on which an outcome is told."""
    match outcome:
        case m.JobDone():
            return topics.DONE
        case m.JobFailed():
            return topics.FAILED
        case m.Escalation():
            return topics.ESCALATE


def query_of(held: HeldJob, *, model: str) -> routing.RouteQuery:
    """Return what the routing rule needs to know of an attempt on a worker with this model."""
    assignment = held.spooled.assignment
    return routing.RouteQuery(
        prompt_tokens=held.prompt_tokens,
        max_tokens=assignment.generation.max_tokens,
        escalate=assignment.escalate,
        privacy=assignment.privacy,
        supported=assignment.model is None or assignment.model == model,
    )


def before_generation(
    held: HeldJob,
    *,
    model: str,
    policy: routing.RoutePolicy,
    difficulty: DifficultyModel | None = None,
    timing: routing.Timing | None = None,
) -> Outcome | None:
    """Return the outcome of an attempt that is not for this worker; None: generate.

    A refused job is retryable where another board may have what this one lacks: the model. The
    dispatcher has measured the prompt against the largest context of the fleet itself.
    """
    prompt = held.spooled.assignment.messages[-1].content
    query = msgspec.structs.replace(
        query_of(held, model=model),
        timing=timing,
        foreign_script=foreign_script(prompt, policy.languages),
        difficulty=None if difficulty is None else difficulty.predict(prompt),
    )
    match routing.decide(query, policy):
        case routing.Local():
            return None
        case routing.EscalateTo(reason=reason, detail=detail):
            return m.Escalation(
                attempt=held.attempt,
                reason=reason,
                detail=detail,
                prompt_tokens=held.prompt_tokens,
            )
        case routing.Refuse(reason=m.Reason.UNSUPPORTED, detail=detail):
            return failure(held, code="unknown_model", message=detail, retryable=True)
        case routing.Refuse(reason=reason, detail=detail):
            return failure(held, code=reason.value, message=detail, retryable=False)


def trust_in(held: HeldJob, *, model: str, policy: routing.RoutePolicy) -> Trust | None:
    """Return when to give an answer up; None: generate all of it.

    A job that may not leave gets its answer, however doubtful. One that no cloud could take now
    goes up with all of it, or a board would have to write it once more when it is sent back.
    """
    fitted = policy.calibration
    if held.spooled.assignment.cloud_away:
        return None
    if fitted is None or not query_of(held, model=model).may_escalate:
        return None
    if not fitted.may_bound:
        return None
    return Trust(calibration=fitted, least=policy.min_confidence)


def when_overheated(held: HeldJob, *, model: str) -> m.Escalation | None:
    """Return the outcome of an attempt that is not begun for the heat; None: it has to wait."""
    if not query_of(held, model=model).may_escalate:
        return None
    return m.Escalation(
        attempt=held.attempt,
        reason=m.Reason.OVERHEATED,
        detail="the board is at its critical temperature and begins nothing",
        prompt_tokens=held.prompt_tokens,
    )


def after_generation(
    held: HeldJob, finished: Finished, *, model: str, policy: routing.RoutePolicy
) -> Outcome:
    """Return the answer as the outcome, or hand it to the cloud if it is too uncertain.

    Half of a form is no answer: whoever reads it would stumble over it. It is not kept either.
    """
    if finished.gave_up:
        return m.Escalation(
            attempt=held.attempt,
            reason=m.Reason.LOW_CONFIDENCE,
            detail=f"given up after {finished.tokens} tokens: no end would have been trusted",
            prompt_tokens=held.prompt_tokens,
        )
    if not finished.fits_output:
        return _after_half_a_form(held, finished, model=model)
    answer = m.LocalAnswer(
        text=finished.text,
        model=model,
        confidence=confidence(finished.text, finished.logprobs, policy.calibration),
        finish=finished.finish,
        usage=m.Usage(
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.tokens,
            cached_tokens=finished.cached_tokens,
        ),
    )
    return _judged(held, answer, model=model, policy=policy)


def from_cache(
    held: HeldJob, answer: m.LocalAnswer, *, model: str, policy: routing.RoutePolicy
) -> Outcome:
    """Return what becomes of an attempt whose answer is known: the same as when it was generated.

    The prompt is the same up to its blanks: so is, nearly, its length in tokens.
    """
    held.prompt_tokens = answer.usage.prompt_tokens
    refused = before_generation(held, model=model, policy=policy)
    return refused or _judged(held, answer, model=model, policy=policy)


def _judged(
    held: HeldJob, answer: m.LocalAnswer, *, model: str, policy: routing.RoutePolicy
) -> Outcome:
    match routing.judge(answer.text, answer.confidence, query_of(held, model=model), policy):
        case routing.Local():
            return m.JobDone(attempt=held.attempt, answer=answer)
        case routing.EscalateTo(reason=reason, detail=detail):
            return m.Escalation(
                attempt=held.attempt,
                reason=reason,
                detail=detail,
                prompt_tokens=held.prompt_tokens,
                answer=answer,
            )


def _after_half_a_form(held: HeldJob, finished: Finished, *, model: str) -> Outcome:
    detail = f"{finished.tokens} tokens did not complete the form that the answer must have"
    if query_of(held, model=model).may_escalate:
        return m.Escalation(
            attempt=held.attempt,
            reason=m.Reason.LOW_CONFIDENCE,
            detail=detail,
            prompt_tokens=held.prompt_tokens,
        )
    message = f"{detail}; raise max_tokens, or bound the form (maxLength, maxItems, enum)"
    return failure(held, code="output_incomplete", message=message, retryable=False)


def after_breakage(held: HeldJob, broke: Broke, *, model: str) -> m.JobFailed | m.Escalation:
    """Return the outcome of an attempt on which the engine failed; half an answer goes along.

    A wrong form is for its author to mend, wherever the job would be answered. One that is right
    but beyond this worker may still be asked of the cloud.
    """
    if broke.code == _BAD_FORM:
        return failure(held, code=broke.code, message=broke.message, retryable=False)
    if broke.code == _UNSUPPORTED_FORM:
        return _after_unsupported_form(held, broke, model=model)
    if not query_of(held, model=model).may_escalate:
        return failure(held, code=broke.code, message=broke.message, retryable=True)
    too_long = broke.code == m.Reason.TOO_LONG
    return m.Escalation(
        attempt=held.attempt,
        reason=m.Reason.TOO_LONG if too_long else m.Reason.LOCAL_ERROR,
        detail=f"{broke.code}: {broke.message}"[:_NOTE_CHARS],
        prompt_tokens=held.prompt_tokens,
        answer=_half_answer(held, model=model),
    )


def _after_unsupported_form(
    held: HeldJob, broke: Broke, *, model: str
) -> m.JobFailed | m.Escalation:
    if not query_of(held, model=model).may_escalate:
        return failure(held, code=broke.code, message=broke.message, retryable=False)
    return m.Escalation(
        attempt=held.attempt,
        reason=m.Reason.UNSUPPORTED,
        detail=broke.message[:_NOTE_CHARS],
        prompt_tokens=held.prompt_tokens,
    )


def if_it_dies(held: HeldJob) -> SpooledJob:
    """Return what is on the disk of a second try: its end, should nobody be there to write one."""
    text = "this worker ended twice while it had it"
    lost = failure(held, code="worker_died", message=text, retryable=True)
    return msgspec.structs.replace(held.spooled, outcome=lost)


def failure(held: HeldJob, *, code: str, message: str, retryable: bool) -> m.JobFailed:
    """Return a failure whose texts fit the protocol, or the dispatcher could never read it."""
    return m.JobFailed(
        attempt=held.attempt,
        code=code[:_CODE_CHARS],
        message=message[:_NOTE_CHARS],
        retryable=retryable,
    )


def _half_answer(held: HeldJob, *, model: str) -> m.LocalAnswer | None:
    text = "".join(held.parts)
    if not text or held.spooled.assignment.generation.output is not None:
        return None
    usage = m.Usage(prompt_tokens=held.prompt_tokens, completion_tokens=held.tokens)
    return m.LocalAnswer(text=text, model=model, finish=m.FinishReason.LENGTH, usage=usage)
