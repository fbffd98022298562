"""The one final word on a job, made from what is known of it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from cloud_dispatcher.core.events import CompletionFinished
from cloud_dispatcher.core.job import Job
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.library import LibraryAnswer
from fleet_protocol.messages import (
    WHOLE_MAX,
    AnsweredBy,
    CompactResult,
    FinishReason,
    JobAck,
    JobResult,
    JobStatus,
    LocalAnswer,
    Message,
    OfflineMatch,
    PlainText,
    TimingMs,
    Usage,
    WorkerId,
)

_CODE_MOST = 64
_NOTE_MOST = 2_000


def edge_result(job: Job, answer: LocalAnswer, *, worker: WorkerId, now_ms: int) -> JobResult:
    """A board answered. Degraded if the cloud should have and could not."""
    return JobResult(
        id=job.id,
        status=JobStatus.OK,
        text=answer.text,
        answered_by=AnsweredBy.CACHE if answer.cached else AnsweredBy.EDGE,
        reason=job.reason,
        code=job.cloud_code[:_CODE_MOST],
        message=job.cloud_message[:_NOTE_MOST],
        worker=worker,
        model=answer.model,
        confidence=answer.confidence,
        finish=answer.finish,
        degraded=bool(job.cloud_code),
        attempts=job.attempt,
        usage=Usage() if answer.cached else answer.usage,
        timing_ms=_timing(job, now_ms),
    )


def kept_result(job: Job, kept: LocalAnswer, *, code: str, message: str, now_ms: int) -> JobResult:
    """What a board had answered before it escalated, because nobody gave a better answer."""
    return JobResult(
        id=job.id,
        status=JobStatus.OK,
        text=kept.text,
        answered_by=AnsweredBy.EDGE,
        reason=job.reason,
        code=code[:_CODE_MOST],
        message=message[:_NOTE_MOST],
        worker=job.last_worker,
        model=kept.model,
        confidence=kept.confidence,
        finish=kept.finish,
        degraded=True,
        attempts=job.attempt,
        usage=kept.usage,
        timing_ms=_timing(job, now_ms),
    )


def cloud_result(job: Job, answer: CompletionFinished, *, now_ms: int) -> JobResult:
    """The cloud answered. Degraded if that is not of the form that the job asked for."""
    return JobResult(
        id=job.id,
        status=JobStatus.OK,
        text=answer.text,
        answered_by=AnsweredBy.CLOUD,
        reason=job.reason,
        code="output_mismatch" if answer.misfit else "",
        message=answer.misfit[:_NOTE_MOST],
        finish=FinishReason.LENGTH if answer.cut else FinishReason.STOP,
        degraded=bool(answer.misfit),
        worker=job.last_worker,
        model=answer.model,
        simulated=answer.simulated,
        attempts=job.attempt,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        timing_ms=_timing(job, now_ms),
    )


def cached_result(job: Job, answer: CachedAnswer, *, now_ms: int) -> JobResult:
    """An earlier answer serves: it takes no tokens and costs nothing."""
    return JobResult(
        id=job.id,
        status=JobStatus.OK,
        text=answer.text,
        answered_by=AnsweredBy.CACHE,
        model=answer.model or None,
        confidence=answer.confidence,
        finish=FinishReason.STOP,
        simulated=answer.simulated,
        timing_ms=_timing(job, now_ms),
    )


def offline_result(
    job: Job, answer: LibraryAnswer, *, code: str, message: str, now_ms: int
) -> JobResult:
    """What an operator wrote down, because nobody answered; `code` and `message` say why."""
    found = f"entry {answer.entry!r}, {answer.kind} match" if answer.entry else "its default"
    return JobResult(
        id=job.id,
        status=JobStatus.OK,
        text=answer.text,
        answered_by=AnsweredBy.OFFLINE,
        offline=OfflineMatch(kind=str(answer.kind), entry=answer.entry, score=answer.score),
        reason=job.reason,
        code=code[:_CODE_MOST],
        message=f"from the offline library ({found}): {message}"[:_NOTE_MOST],
        degraded=True,
        attempts=job.attempt,
        timing_ms=_timing(job, now_ms),
    )


def shared_result(job: Job, result: JobResult, *, now_ms: int) -> JobResult:
    """Another job with the same question was answered: that answer, at no cost.

    A degraded one keeps saying where it came from: it is more than a repetition of a good one.
    """
    return replace(
        result,
        id=job.id,
        answered_by=result.answered_by if result.degraded else AnsweredBy.CACHE,
        attempts=job.attempt,
        usage=Usage(),
        cost_usd=0.0,
        timing_ms=_timing(job, now_ms),
    )


def merged_result(job: Job, last: JobResult, parts: Iterable[Job], *, now_ms: int) -> JobResult:
    """The parts of a long text were answered and merged: the last answer, at the price of all."""
    results = [part.result for part in parts if part.result is not None]
    doubtful = [result for result in (last, *results) if result.degraded]
    usages = [result.usage for result in results]
    return replace(
        last,
        id=job.id,
        code=doubtful[0].code if doubtful else last.code,
        message=doubtful[0].message if doubtful else last.message,
        degraded=bool(doubtful),
        simulated=any(result.simulated for result in results),
        attempts=job.attempt + sum(result.attempts for result in results),
        usage=Usage(
            prompt_tokens=_sum(usage.prompt_tokens for usage in usages),
            completion_tokens=_sum(usage.completion_tokens for usage in usages),
            cached_tokens=_sum(usage.cached_tokens for usage in usages),
        ),
        cost_usd=sum(result.cost_usd for result in results),
        timing_ms=_timing(job, now_ms),
    )


def _sum(counts: Iterable[int]) -> int:
    """Return what a result may have of a sum: boards may say what they like."""
    return min(sum(counts), WHOLE_MAX)


def no_answer(job: Job, status: JobStatus, *, code: str, message: str, now_ms: int) -> JobResult:
    """Nobody answered, and why."""
    return JobResult(
        id=job.id,
        status=status,
        reason=job.reason,
        code=code[:_CODE_MOST],
        message=message[:_NOTE_MOST],
        attempts=job.attempt,
        timing_ms=_timing(job, now_ms),
    )


def as_message(job: Job, result: JobResult) -> Message:
    """Return a result in the form that the device asked for."""
    if job.reply.plain:
        return PlainText(text=_spoken_result(result))
    if job.submit.compact:
        return CompactResult(
            id=result.id,
            status=result.status,
            text=result.text,
            answered_by=result.answered_by,
            code=result.code,
        )
    return result


def spoken_refusal(ack: JobAck) -> str:
    """Return a rejection as a sentence, for a device that asked in plain text."""
    wait_s = -(-ack.retry_after_ms // 1_000)
    wait = f" Try again in {wait_s} s." if wait_s else ""
    return f"Not accepted ({ack.code}): {ack.message}.{wait}"


def _spoken_result(result: JobResult) -> str:
    if result.status is JobStatus.OK:
        return result.text
    return f"No answer ({result.code}): {result.message}."


def _timing(job: Job, now_ms: int) -> TimingMs:
    """A clock that was set back must not make a negative span."""
    received_ms = job.received_at_ms
    assigned_ms, token_ms = job.assigned_at_ms, job.first_token_at_ms
    return TimingMs(
        queued=None if assigned_ms is None else max(assigned_ms - received_ms, 0),
        first_token=None if token_ms is None else max(token_ms - received_ms, 0),
        total=max(now_ms - received_ms, 0),
    )
