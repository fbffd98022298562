"""`/jobs` over urllib: a client that knows nothing of the project."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
import structlog

from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.gateway_house import gateway, says
from tests.unit.service_house import PATIENCE_S, House, Worker

QUESTION = {"prompt": "Is the hall warm?", "max_tokens": 9}


async def call(url: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    """Return status and body, read as JSON or, of a stream, as text."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - loopback

    def fetch() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - same
                text = reply.read().decode()
                streamed = reply.headers.get_content_type() == "text/event-stream"
                return reply.status, text if streamed else json.loads(text)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.loads(refusal.read())

    return await asyncio.to_thread(fetch)


async def follow(url: str, job: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Follow a job; return once it is listened to."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    asked = f"GET /jobs/{job}/events HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    writer.write(asked.encode())
    await reader.readuntil(b": open\n\n")
    return reader, writer


async def test_a_job_is_taken_in_and_fetched_when_it_is_done(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        status, told = await call(f"{url}/jobs", "POST", {"id": "q1", **QUESTION})
        assert (status, told["id"], told["result"]) == (202, "q1", None)
        worker.done(await worker.assignment(), "It is.")
        await house.until(lambda: house.store._jobs[told["job"]].result is not None)
        status, told = await call(f"{url}/jobs/q1")
    assert (status, told["status"], told["result"]["text"]) == (200, "ok", "It is.")
    assert "Is the hall warm?" not in json.dumps(told)


async def test_a_look_at_a_job_is_no_line_of_the_log_but_a_refusal_is(house: House) -> None:
    async with gateway(house) as url:
        await call(f"{url}/jobs", "POST", {"id": "q1", **QUESTION})
        with structlog.testing.capture_logs() as lines:
            for path in ("/jobs/q1", "/jobs", "/jobs/unknown", "/jobs?status=nonsense"):
                await call(f"{url}{path}")
            await call(f"{url}/jobs/q1", "DELETE")
    answered = [line for line in lines if line["event"] == "http.answered"]
    assert [(line["method"], line["status"], line["log_level"]) for line in answered] == [
        ("GET", 200, "debug"),
        ("GET", 200, "debug"),
        ("GET", 404, "info"),
        ("GET", 400, "info"),
        ("DELETE", 200, "info"),
    ]


async def test_the_same_id_again_is_the_same_job(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        keys = {
            (await call(f"{url}/jobs", "POST", {"id": "q1", **QUESTION}))[1]["job"]
            for _ in range(2)
        }
        await worker.assignment()
    assert len(keys) == len(house.store._jobs) == 1


async def test_a_follower_hears_every_piece_and_the_result(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        await call(f"{url}/jobs", "POST", {"id": "q1", "stream": True, **QUESTION})
        got = await worker.assignment()
        reader, writer = await follow(url, "q1")
        says(worker, got, 0, "It ")
        says(worker, got, 1, "is.")
        worker.done(got, "It is.")
        live = (await reader.read()).decode()
        writer.close()
        _, later = await call(f"{url}/jobs/q1/events")
    names = [line for line in live.splitlines() if line.startswith("event: ")]
    assert names == ["event: token", "event: token", "event: result"]
    data = [line for line in live.splitlines() if line.startswith("data: ")]
    assert json.loads(data[-1].removeprefix("data: "))["text"] == "It is."
    assert later.count("event: ") == later.count("event: result") == 1


async def test_a_follower_that_goes_away_leaves_the_job_alone(house: House, worker: Worker) -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway(house) as url:
            await call(f"{url}/jobs", "POST", {"id": "q1", **QUESTION})
            got = await worker.assignment()
            _, writer = await follow(url, "q1")
            writer.close()
            await house.until(lambda: any(x.get("path") == "/jobs/q1/events" for x in lines))
            worker.done(got, "It is.")
            await house.until(lambda: house.store._jobs[got.job].result is not None)
    assert house.store._jobs[got.job].status is m.JobStatus.OK


async def test_a_job_is_cancelled_once(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        await call(f"{url}/jobs", "POST", {"id": "q1", **QUESTION})
        await worker.assignment()
        status, told = await call(f"{url}/jobs/q1", "DELETE")
        assert (status, told["status"]) == (200, "cancelled")
        await worker.hear(t.WORKER_CANCEL, "w1")
        status, told = await call(f"{url}/jobs/q1", "DELETE")
    assert (status, told["error"]["code"]) == (409, "job_finished")


async def test_lists_come_in_pages_newest_first(house: House) -> None:
    async with gateway(house) as url:
        for i in range(5):
            await call(f"{url}/jobs", "POST", {"id": f"q{i}", "prompt": f"Question {i}?"})
        pages, path = [], "limit=2"
        while True:
            _, told = await call(f"{url}/jobs?{path}")
            pages.append([job["id"] for job in told["jobs"]])
            if told["next"] is None:
                break
            path = f"limit=2&before={told['next']}"
        _, none = await call(f"{url}/jobs?status=ok")
    assert pages == [["q4", "q3"], ["q2", "q1"], ["q0"]]
    assert none["jobs"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/jobs/nobody", None, 404, "unknown_job"),
        ("DELETE", "/jobs/nobody", None, 404, "unknown_job"),
        ("GET", "/jobs/nobody/events", None, 404, "unknown_job"),
        ("GET", "/jobs/a%00b", None, 404, "unknown_job"),
        ("GET", "/jobs?before=%00", None, 400, "invalid_query"),
        ("GET", "/jobs?limit=0", None, 400, "invalid_query"),
        ("GET", "/jobs?status=done", None, 400, "invalid_query"),
        ("GET", "/jobs?state=ok", None, 400, "invalid_query"),
        ("POST", "/jobs", {"id": "a/b", **QUESTION}, 400, "invalid_id"),
        ("POST", "/jobs", {"id": "q1"}, 400, "invalid_field"),
        ("POST", "/jobs", {"prompt": "x" * 300_000}, 413, "too_large"),
        ("POST", "/jobs", {"v": 9, **QUESTION}, 400, "unsupported_version"),
        ("PUT", "/jobs", None, 405, "method_not_allowed"),
    ],
)
async def test_what_cannot_be_done_is_said(
    house: House, method: str, path: str, body: Any, status: int, code: str
) -> None:
    async with gateway(house) as url:
        told = await call(f"{url}{path}", method, body)
    assert (told[0], told[1]["error"]["code"]) == (status, code), told
    assert house.store._jobs == {}
