"""`/v1` as applications meet it: the `openai` SDK before a dispatcher of fakes."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.gateway_house import gateway, openai_client, says
from tests.unit.service_house import House, Peer, Worker

ASKED: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Is the hall warm?"}]
FACTS: dict[str, Any] = {"model": "fleet", "messages": ASKED}
LIVE: dict[str, Any] = {**FACTS, "stream": True}


def no_regex(got: m.Assignment) -> m.JobFailed:
    """A failure that no other board would be spared."""
    return m.JobFailed(
        attempt=got.attempt, code="bad_output_format", message="it is no regex", retryable=False
    )


async def test_an_answer_comes_with_its_usage_and_who_gave_it(house: House, worker: Worker) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        asking = asyncio.create_task(client.chat.completions.create(**FACTS))
        got = await worker.assignment()
        assert got.messages == (m.ChatMessage(role=m.ChatRole.USER, content="Is the hall warm?"),)
        usage = m.Usage(prompt_tokens=9, completion_tokens=4)
        said = m.LocalAnswer(text="It is.", model="tiny", confidence=0.9, usage=usage)
        worker.say(t.DONE, m.JobDone(attempt=got.attempt, answer=said), "w1", got.job)
        answer = await asking
    assert answer.choices[0].message.content == "It is."
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "tiny")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (9, 13)
    assert answer.model_extra is not None
    facts = answer.model_extra["fleet"]
    assert (facts["answered_by"], facts["worker"], facts["degraded"]) == ("edge", "w1", False)


async def test_nothing_of_it_crosses_the_broker_but_the_work(house: House, worker: Worker) -> None:
    async with house.peer(Peer, "spy", "dev") as spy:
        async with gateway(house) as url, openai_client(url) as client:
            asking = asyncio.create_task(client.chat.completions.create(**LIVE))
            got = await worker.assignment()
            says(worker, got, 0, "It ")
            worker.done(got)
            async for _ in await asking:
                pass
            house.clock.now_ms += 1_000  # so that the word of it is due to be saved
            await house.until(lambda: all(job.told for job in house.store._jobs.values()))
        assert spy.unheard() == []


async def test_a_stream_tells_each_piece_as_it_comes_and_the_usage_last(
    house: House, worker: Worker
) -> None:
    more = {"stream_options": {"include_usage": True}}
    async with gateway(house) as url, openai_client(url) as client:
        stream = await client.chat.completions.create(**LIVE, **more)
        got = await worker.assignment()
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        told = ""
        for index, text in enumerate(("It", " is", " so.")):
            says(worker, got, index, text)
            told += (await anext(stream)).choices[0].delta.content or ""
        assert told == "It is so."
        worker.done(got)
        end, usage = [chunk async for chunk in stream]
    assert (end.choices[0].delta.content, end.choices[0].finish_reason) == (None, "stop")
    assert usage.choices == []
    assert usage.usage is not None


async def test_what_the_cloud_may_still_replace_is_told_with_the_result(
    house: House, worker: Worker
) -> None:
    async with gateway(house, has_cloud=True) as url, openai_client(url) as client:
        stream = await client.chat.completions.create(**LIVE)
        got = await worker.assignment()
        says(worker, got, 0, "A guess")
        answer = m.LocalAnswer(text="A guess", model="tiny", confidence=0.1)
        up = m.Escalation(attempt=got.attempt, reason=m.Reason.LOW_CONFIDENCE, answer=answer)
        worker.say(t.ESCALATE, up, "w1", got.job)
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == "[scripted answer]"
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["fleet"]["reason"] == "low_confidence"


async def test_drafts_are_told_at_once_and_taken_back_in_words(
    house: House, worker: Worker
) -> None:
    async with gateway(house, has_cloud=True) as url, openai_client(url) as client:
        stream = await client.chat.completions.create(**LIVE, extra_body={"drafts": True})
        got = await worker.assignment()
        says(worker, got, 0, "A guess")
        await anext(stream)
        assert (await anext(stream)).choices[0].delta.content == "A guess"
        up = m.Escalation(attempt=got.attempt, reason=m.Reason.LOW_CONFIDENCE)
        worker.say(t.ESCALATE, up, "w1", got.job)
        shown = "A guess"
        async for chunk in stream:
            over = (chunk.model_extra or {}).get("fleet", {}).get("starts_over")
            shown = "" if over else shown
            shown += chunk.choices[0].delta.content or ""
    assert shown == "[scripted answer]"


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_goes_away_cancels_its_job(
    house: House, worker: Worker, *, streams: bool
) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        asking = asyncio.create_task(client.chat.completions.create(**FACTS, stream=streams))
        got = await worker.assignment()
        if streams:
            await (await asking).close()
        else:
            asking.cancel()
        await worker.hear(t.WORKER_CANCEL, "w1")
        await house.until(lambda: house.store._jobs[got.job].status is m.JobStatus.CANCELLED)


ONCE: dict[str, Any] = {
    **FACTS, "extra_headers": {"Idempotency-Key": "k1"}, "extra_body": {"cache": "off"},
}  # fmt: skip


async def test_a_request_that_comes_again_with_its_key_is_run_once_over_restarts(
    house: House, worker: Worker
) -> None:
    said = list[str | None]()
    async with gateway(house) as url, openai_client(url) as client:
        both = [asyncio.create_task(client.chat.completions.create(**ONCE)) for _ in range(2)]
        await house.until(lambda: len(house.store._jobs) == 1)
        worker.done(await worker.assignment(), "It is.")
        said += [(await each).choices[0].message.content for each in both]
        said.append((await client.chat.completions.create(**ONCE)).choices[0].message.content)
    async with gateway(house) as url, openai_client(url) as client:
        said.append((await client.chat.completions.create(**ONCE)).choices[0].message.content)
        streamed = await client.chat.completions.create(**ONCE, stream=True)
        worker.done(await worker.assignment(after=1), "Streams are requests of their own.")
        async for _ in streamed:
            pass
    assert said == ["It is."] * 4
    assert len(house.store._jobs) == 2


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_may_come_again_finds_its_job_where_it_left_it(
    house: House, worker: Worker, *, streams: bool
) -> None:
    async with openai_client("http://127.0.0.1:1") as client:
        async with gateway(house) as url:
            client.base_url = f"{url}/v1"
            asking = asyncio.create_task(client.chat.completions.create(**ONCE, stream=streams))
            got = await worker.assignment()
            if streams:
                await (await asking).close()
            else:
                asking.cancel()
        async with gateway(house) as url:
            client.base_url = f"{url}/v1"
            again = asyncio.create_task(client.chat.completions.create(**ONCE, stream=streams))
            worker.done(got, "It is.")
            answer: Any = await again
            if streams:
                told = [chunk.choices[0].delta.content or "" async for chunk in answer]
                assert "".join(told) == "It is."
            else:
                assert answer.choices[0].message.content == "It is."
    assert len(house.store._jobs) == 1


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_to_come_again_with_has_a_size(house: House, key: str) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
            await client.chat.completions.create(**FACTS, extra_headers={"Idempotency-Key": key})


async def test_a_model_that_nobody_has_is_not_found(house: House, worker: Worker) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        names = [model.id async for model in client.models.list()]
        assert names == ["fleet", "tiny"]
        assert (await client.models.retrieve("tiny")).owned_by == "edgefleet"
        with pytest.raises(openai.NotFoundError, match="no worker has"):
            await client.models.retrieve("gpt-9")
        with pytest.raises(openai.NotFoundError, match="known are tiny") as refused:
            await client.chat.completions.create(model="gpt-9", messages=ASKED)
    assert refused.value.code == "model_not_found"
    assert worker.heard == []


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 3, "temperature"),
        ("n", 2, "n"),
        ("tools", [{"type": "function"}], "tools"),
        ("messages", [{"role": "user", "content": 7}], "messages[0].content"),
        ("messages", [{"role": "tool", "content": "x"}], "messages[0].role"),
        ("messages", [], "messages"),
        ("response_format", {"type": "xml"}, "response_format"),
    ],
)
async def test_a_wrong_field_is_named(house: House, field: str, value: Any, param: str) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.post(
                "/chat/completions", body={**FACTS, field: value}, cast_to=dict[str, Any]
            )
    assert refused.value.param == param


async def test_a_full_queue_is_an_error_to_come_back_from(house: House) -> None:
    house.settings = EngineSettings(queue_limit=1)
    async with gateway(house) as url, openai_client(url) as client:
        first = asyncio.create_task(client.chat.completions.create(**FACTS))
        await house.until(lambda: len(house.store._jobs) == 1)
        with pytest.raises(openai.InternalServerError) as busy:
            await client.chat.completions.create(
                model="fleet", messages=[{"role": "user", "content": "And the yard?"}]
            )
        first.cancel()
    assert (busy.value.status_code, busy.value.code) == (503, "busy")
    assert int(busy.value.response.headers["retry-after"]) >= 1


async def test_beyond_so_many_waiting_requests_none_is_taken(house: House) -> None:
    async with gateway(house, max_open=1) as url, openai_client(url) as client:
        first = asyncio.create_task(client.chat.completions.create(**FACTS))
        await house.until(lambda: len(house.store._jobs) == 1)
        with pytest.raises(openai.InternalServerError, match="1 requests wait"):
            await client.chat.completions.create(**FACTS)
        first.cancel()


async def test_a_job_that_nobody_can_do_is_an_error_that_is_not_worth_repeating(
    house: House, worker: Worker
) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        asking = asyncio.create_task(client.chat.completions.create(**FACTS))
        got = await worker.assignment()
        worker.say(t.FAILED, no_regex(got), "w1", got.job)
        with pytest.raises(openai.UnprocessableEntityError, match="it is no regex") as failed:
            await asking
    assert failed.value.code == "bad_output_format"
    assert failed.value.response.headers["x-should-retry"] == "false"


async def test_a_stream_that_ends_badly_says_so(house: House, worker: Worker) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        stream = await client.chat.completions.create(**LIVE)
        got = await worker.assignment()
        worker.say(t.FAILED, no_regex(got), "w1", got.job)
        with pytest.raises(openai.APIError, match="it is no regex"):
            async for _ in stream:
                pass


async def test_nobody_on_the_broker_speaks_in_the_name_of_who_asks_over_http(
    house: House, worker: Worker, device: Peer
) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        asking = asyncio.create_task(client.chat.completions.create(**FACTS))
        got = await worker.assignment()
        name = house.store._jobs[got.job].id
        device.say(t.CANCEL, m.JobCancel(), "http-default", name)
        device.say(t.SUBMIT, m.JobSubmit(prompt="Mine?"), "http-default", "forged")
        device.say(t.SUBMIT, m.JobSubmit(prompt="Mine?"), "d1", "own")
        await device.ack("own")
        worker.done(got, "It is.")
        assert (await asking).choices[0].message.content == "It is."
    assert {job.id for job in house.store._jobs.values()} == {name, "own"}


async def test_a_stop_cancels_what_does_not_end_in_time(house: House, worker: Worker) -> None:
    async with openai_client("http://127.0.0.1:1") as client:
        async with gateway(house) as url:
            client.base_url = f"{url}/v1"
            asking = asyncio.create_task(client.chat.completions.create(**FACTS))
            got = await worker.assignment()
        with pytest.raises(openai.APIError):
            await asking
    assert house.store._jobs[got.job].status is m.JobStatus.CANCELLED
