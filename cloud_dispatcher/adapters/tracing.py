"""OpenTelemetry: one trace a job, from the device that asked to its answer.

An observer notes when attempts and calls begin and end, and makes all spans of a job when it is
over: the path of a job pays for a few entries, and a job that was open over a restart has its whole
span at least. Names are those of the conventions for generative AI; texts are in no span.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.commands import AnyCommand, HandOver, Send, StartCompletion
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.observers import just_finished
from fleet_protocol import __version__
from fleet_protocol import messages as m

_MILLIS_NS: Final = 1_000_000
_STEPS_MOST: Final = 64
"""Of one job: what is tried again for ever fills no memory."""
_JOBS_MOST: Final = 200_000
"""Beyond it jobs have their whole span alone."""
_BOARD: Final = "edgefleet"
"""The provider's name where a board answers."""

_Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class _Step(msgspec.Struct, kw_only=True):
    """An attempt of a board, or a call to the cloud."""

    attempt: int
    began_ms: int
    who: str
    is_cloud: bool = False
    ended_ms: int | None = None
    error: str = ""
    escalated: str = ""
    model: str = ""
    usage: m.Usage | None = None
    finish: str = ""


class Tracing:
    """Makes spans of decisions. An `Observer`.

    Args:
        processor: Takes the spans; a batch of them leaves in a thread of its own.
        share: Of the jobs whose device does not say whether it traces them.
    """

    def __init__(self, processor: SpanProcessor, *, share: float = 1.0) -> None:
        resource = Resource.create(
            {"service.name": "edgefleet-dispatcher", "service.version": __version__}
        )
        # What a device decided holds; the rest is drawn by the trace's own number.
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("edgefleet", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._steps: dict[m.JobKey, list[_Step]] = {}

    def close(self) -> None:
        """Send what was not sent yet, and end."""
        self._provider.shutdown()

    def observe(self, event: e.AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Note what begins and ends."""
        self._note_event(event, now_ms)
        for command in commands:
            if type(command) is Send and type(command.message) is m.Assignment:
                assigned = command.message
                step = _Step(attempt=assigned.attempt, began_ms=now_ms, who=command.ids[0])
                self._begin(m.JobKey(assigned.job), step)
            elif type(command) is StartCompletion:
                request = command.request
                step = _Step(attempt=request.attempt, began_ms=now_ms, who="", is_cloud=True)
                self._begin(request.job, step)
            elif type(command) is HandOver:
                self._steps.pop(command.job, None)
        for job, result in just_finished(event, commands, now_ms):
            self._tell(job, result, self._steps.pop(job.key, []), now_ms)

    def _note_event(self, event: e.AnyEvent, now_ms: int) -> None:
        if type(event) is e.DoneReceived:
            for key, attempt, answer in event.answers():
                self._end(key, attempt, now_ms, answer=answer)
        elif type(event) is e.FailureReceived:
            self._end(event.job, event.failure.attempt, now_ms, error=event.failure.code)
        elif type(event) is e.EscalationReceived:
            escalation = event.escalation
            step = self._end(event.job, escalation.attempt, now_ms, answer=escalation.answer)
            if step is not None:
                step.escalated = str(escalation.reason)
        elif type(event) is e.CompletionFailed:
            self._end(event.job, event.attempt, now_ms, error=event.code)
        elif type(event) is e.CompletionFinished:
            step = self._end(event.job, event.attempt, now_ms)
            if step is not None:
                step.who, step.model, step.usage = event.provider, event.model, event.usage
                step.finish = "length" if event.cut else "stop"

    def _begin(self, job: m.JobKey, step: _Step) -> None:
        steps = self._steps.get(job)
        if steps is None:
            if len(self._steps) >= _JOBS_MOST:
                return
            steps = self._steps[job] = []
        # Who was given the job before has lost it, or it would not be given out again.
        for before in steps[-1:]:
            if before.ended_ms is None:
                before.ended_ms, before.error = step.began_ms, "lost"
        if len(steps) < _STEPS_MOST:
            steps.append(step)

    def _end(
        self,
        job: m.JobKey,
        attempt: int,
        now_ms: int,
        *,
        error: str = "",
        answer: m.LocalAnswer | None = None,
    ) -> _Step | None:
        open_steps = (s for s in self._steps.get(job, ()) if s.ended_ms is None)
        step = next((s for s in open_steps if s.attempt == attempt), None)
        if step is None:
            return None
        step.ended_ms, step.error = now_ms, error
        if answer is not None:
            step.model, step.usage, step.finish = answer.model, answer.usage, str(answer.finish)
        return step

    def _tell(self, job: Job, result: m.JobResult, steps: list[_Step], now_ms: int) -> None:
        asked = {"traceparent": job.submit.traceparent} if job.submit.traceparent else {}
        context = self._propagator.extract(asked)
        # The device waits for it: a job is served, and its attempts are calls to others.
        root = self._tracer.start_span(
            "job",
            context=context,
            kind=SpanKind.SERVER,
            start_time=job.received_at_ms * _MILLIS_NS,
            attributes=_of_job(job, result),
        )
        if result.status is not m.JobStatus.OK:
            root.set_status(Status(StatusCode.ERROR, result.code))
        inside = trace.set_span_in_context(root)
        for step in steps:
            span = self._tracer.start_span(
                f"chat {step.model}".strip(),
                context=inside,
                kind=SpanKind.CLIENT,
                start_time=step.began_ms * _MILLIS_NS,
                attributes=_of_step(job, step),
            )
            if step.error:
                span.set_status(Status(StatusCode.ERROR, step.error))
            span.end(end_time=(step.ended_ms or now_ms) * _MILLIS_NS)
        root.end(end_time=now_ms * _MILLIS_NS)


def exporting(endpoint: str, *, share: float) -> Tracing:
    """Return what sends traces to an endpoint."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), share=share)


def _of_job(job: Job, result: m.JobResult) -> _Attributes:
    found: dict[str, str | int | float | bool] = {
        "edgefleet.job": job.key,
        "edgefleet.device": job.device,
        "edgefleet.status": str(result.status),
        "edgefleet.answered_by": str(result.answered_by or "nobody"),
        "edgefleet.attempts": job.attempt,
        "edgefleet.degraded": result.degraded,
        "edgefleet.cost_usd": result.cost_usd,
        "edgefleet.prompt_chars": job.submit.prompt_chars,
    }
    if result.reason is not None:
        found["edgefleet.reason"] = str(result.reason)
    if job.part is not None:
        found["edgefleet.part_of"] = job.part.job
    if result.code:
        found["error.type"] = result.code
    return found


def _of_step(job: Job, step: _Step) -> _Attributes:
    submit = job.submit
    found: dict[str, str | int | float | bool | Sequence[str]] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": (step.who or "cloud") if step.is_cloud else _BOARD,
        "gen_ai.request.max_tokens": submit.max_tokens,
        "gen_ai.request.temperature": submit.temperature,
        "gen_ai.request.top_p": submit.top_p,
        "edgefleet.attempt": step.attempt,
    }
    if submit.model is not None:
        found["gen_ai.request.model"] = submit.model
    if submit.seed is not None:
        found["gen_ai.request.seed"] = submit.seed
    if not step.is_cloud:
        found["edgefleet.worker"] = step.who
    if step.model:
        found["gen_ai.response.model"] = step.model
    if step.usage is not None:
        found["gen_ai.usage.input_tokens"] = step.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = step.usage.completion_tokens
    if step.finish:
        found["gen_ai.response.finish_reasons"] = (step.finish,)
    if step.escalated:
        found["edgefleet.escalated"] = step.escalated
    if step.error:
        found["error.type"] = step.error
    return found
