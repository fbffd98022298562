"""One trace from the device that asks to its answer, as OpenTelemetry's own exporter got it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cloud_dispatcher.adapters.scripted_provider import ScriptedProvider
from cloud_dispatcher.adapters.tracing import Tracing
from cloud_dispatcher.adapters.tracing_settings import TracingSettings, build_tracing
from fleet_client.options import build_submit
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.gateway_house import gateway
from tests.unit.service_house import PATIENCE_S, House, Peer, Worker

SECRET = "the code of the door is 4711"


class Traced:
    """A dispatcher whose spans stay in memory."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def of_job(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Return the span of the one job, and those of its attempts in order."""
        (root,) = [span for span in self.spans if span.name == "job"]
        steps = [span for span in self.spans if span is not root]
        return root, sorted(steps, key=lambda span: span.start_time or 0)


@pytest.fixture
def traced(house: House) -> Iterator[Traced]:
    made = Traced(house)
    house.observers = (made.tracing,)
    yield made
    made.tracing.close()


async def test_one_trace_leads_from_the_device_to_the_answer(
    traced: Traced, device: Peer, worker: Worker
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    headers: dict[str, str] = {}
    with provider.get_tracer("device").start_as_current_span("ask") as mine:
        TraceContextTextMapPropagator().inject(headers)
    asked = build_submit("Is the hall warm?", traceparent=headers["traceparent"], max_tokens=20)
    async with traced.house.dispatcher():
        device.say(t.SUBMIT, asked, "d1", "j1")
        got = await worker.assignment()
        traced.house.clock.now_ms += 300
        usage = m.Usage(prompt_tokens=9, completion_tokens=4)
        answer = m.LocalAnswer(text="It is.", model="tiny", confidence=0.9, usage=usage)
        worker.say(t.DONE, m.JobDone(attempt=got.attempt, answer=answer), "w1", got.job)
        await device.result("j1")
        await traced.house.until(lambda: bool(traced.spans))
    root, (step,) = traced.of_job()
    assert root.context is not None
    assert root.parent is not None
    assert root.context.trace_id == mine.get_span_context().trace_id
    assert root.parent.span_id == mine.get_span_context().span_id
    assert root.kind is SpanKind.SERVER
    assert root.attributes is not None
    assert root.attributes["edgefleet.answered_by"] == "edge"
    assert step.parent == root.context
    assert step.name == "chat tiny"
    assert ((step.end_time or 0) - (step.start_time or 0)) // 1_000_000 == 300
    assert step.attributes is not None
    assert dict(step.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "edgefleet",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 4,
        "edgefleet.attempt": 1,
        "edgefleet.worker": "w1",
    }


async def test_an_escalated_job_has_the_board_and_the_cloud_in_one_trace(
    traced: Traced, device: Peer, worker: Worker
) -> None:
    traced.house.provider = ScriptedProvider()
    async with traced.house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Explain heat pumps."), "d1", "j1")
        got = await worker.assignment()
        escalation = m.Escalation(attempt=got.attempt, reason=m.Reason.COMPLEX)
        worker.say(t.ESCALATE, escalation, "w1", got.job)
        await device.result("j1")
        await traced.house.until(lambda: bool(traced.spans))
    root, (board, cloud) = traced.of_job()
    assert root.attributes is not None
    assert board.attributes is not None
    assert cloud.attributes is not None
    assert root.attributes["edgefleet.reason"] == "complex"
    assert board.attributes["edgefleet.escalated"] == "complex"
    assert board.status.status_code is StatusCode.UNSET
    assert cloud.attributes["gen_ai.operation.name"] == "chat"
    assert cloud.attributes["gen_ai.provider.name"] not in {"edgefleet", ""}
    assert "edgefleet.worker" not in cloud.attributes
    assert board.parent == cloud.parent == root.context


async def test_a_failure_is_an_error_with_its_code_and_the_next_try_is_there(
    traced: Traced, device: Peer, worker: Worker
) -> None:
    async with traced.house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Is it?", escalate=m.Escalate.NEVER), "d1", "j1")
        got = await worker.assignment()
        failure = m.JobFailed(attempt=got.attempt, code="local_error")
        worker.say(t.FAILED, failure, "w1", got.job)
        await worker.until_settled(got)
        # After its pause it is tried again, by the same board: there is no other.
        state = m.WorkerState(ts=1, seq=1, status=m.Activity.IDLE, cpu_pct=1, mem_pct=1, inflight=0)
        while not worker.unheard():
            traced.house.clock.now_ms += 1_000
            worker.say(t.STATE, state, "w1")
            await asyncio.sleep(0)
        again = await worker.assignment(after=1)
        worker.done(again)
        await device.result("j1")
        await traced.house.until(lambda: bool(traced.spans))
    _, (first, second) = traced.of_job()
    assert first.attributes is not None
    assert (first.status.status_code, first.attributes["error.type"]) == (
        StatusCode.ERROR,
        "local_error",
    )
    assert second.status.status_code is StatusCode.UNSET


async def test_no_text_is_in_any_span(traced: Traced, device: Peer, worker: Worker) -> None:
    async with traced.house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt=SECRET), "d1", "j1")
        worker.done(await worker.assignment(), SECRET)
        await device.result("j1")
        await traced.house.until(lambda: bool(traced.spans))
    assert SECRET not in "".join(span.to_json() for span in traced.spans)


@pytest.mark.parametrize("word", ["", "00-nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_trace_that_cannot_be_read_is_no_trace_and_no_failure(
    traced: Traced, device: Peer, worker: Worker, word: str
) -> None:
    async with traced.house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Is it?", traceparent=word), "d1", "j1")
        worker.done(await worker.assignment())
        assert (await device.result("j1")).status is m.JobStatus.OK
        await traced.house.until(lambda: bool(traced.spans))
    root, _ = traced.of_job()
    assert root.parent is None


async def test_a_device_that_does_not_trace_this_one_is_heeded(
    traced: Traced, device: Peer, worker: Worker
) -> None:
    unsampled = f"00-{'a' * 32}-{'b' * 16}-00"
    async with traced.house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Is it?", traceparent=unsampled), "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
        device.say(t.SUBMIT, m.JobSubmit(prompt="And this?"), "d1", "j2")
        worker.done(await worker.assignment(after=1))
        await device.result("j2")
        await traced.house.until(lambda: bool(traced.spans))
    root, _ = traced.of_job()
    assert root.parent is None


def test_without_an_endpoint_opentelemetry_is_not_even_loaded() -> None:
    assert build_tracing(TracingSettings()) is None
    code = "import sys, cloud_dispatcher.app; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("path", ["/jobs", "/v1/chat/completions"])
async def test_a_request_over_http_is_in_its_callers_trace(
    traced: Traced, worker: Worker, path: str
) -> None:
    trace_id, span_id = "a" * 32, "b" * 16
    bodies = {
        "/jobs": {"prompt": "Is it?"},
        "/v1/chat/completions": {"model": "fleet", "messages": [{"role": "user", "content": "?"}]},
    }
    headers = {
        "content-type": "application/json",
        "traceparent": f"00-{trace_id}-{span_id}-01",
    }
    async with gateway(traced.house) as url:
        asked = urllib.request.Request(  # noqa: S310 - loopback
            f"{url}{path}", data=json.dumps(bodies[path]).encode(), headers=headers
        )

        def ask() -> int:
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as reply:  # noqa: S310 - same
                return int(reply.status)

        asking = asyncio.create_task(asyncio.to_thread(ask))
        worker.done(await worker.assignment())
        assert await asking in {200, 202}
        await traced.house.until(lambda: bool(traced.spans))
    root, _ = traced.of_job()
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == trace_id
    assert f"{root.parent.span_id:016x}" == span_id


class Collector(BaseHTTPRequestHandler):
    """Takes spans by OTLP over HTTP, as collectors do."""

    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the test looks at the bodies."""


async def test_spans_reach_a_collector_by_the_end_of_the_dispatcher(
    house: House, device: Peer, worker: Worker
) -> None:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        serving = asyncio.create_task(asyncio.to_thread(server.serve_forever, 0.01))
        url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        tracing = build_tracing(TracingSettings(endpoint=url))
        assert tracing is not None
        house.observers = (tracing,)
        async with house.dispatcher():
            device.say(t.SUBMIT, m.JobSubmit(prompt="Is it?"), "d1", "j1")
            worker.done(await worker.assignment())
            await device.result("j1")
        await asyncio.to_thread(tracing.close)
        server.shutdown()
        await serving
    told = ExportTraceServiceRequest.FromString(b"".join(Collector.bodies))
    spans = [span.name for one in told.resource_spans for s in one.scope_spans for span in s.spans]
    assert sorted(spans) == ["chat tiny", "job"]
