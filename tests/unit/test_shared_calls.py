"""The same question at the same time is one call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from cloud_dispatcher.adapters import provider_errors
from cloud_dispatcher.adapters.scripted_provider import ScriptedAnswer, ScriptedProvider
from cloud_dispatcher.adapters.shared_calls import SharedCalls
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey
from tests.virtual_time import run_virtually

HANGS = ScriptedAnswer(pieces=("[scripted ",), hang=True)


def ask(prompt: str = "Warm?", *, timeout_ms: int = 60_000, **how: Any) -> CompletionRequest:
    return CompletionRequest(
        job=JobKey("01J"),
        attempt=1,
        messages=(ChatMessage(role=ChatRole.USER, content=prompt),),
        generation=Generation(**how),
        timeout_ms=timeout_ms,
    )


async def whole(calls: SharedCalls, request: CompletionRequest) -> tuple[str, Completion]:
    pieces, last = "", None
    async for part in calls.stream(request):
        if isinstance(part, Completion):
            last = part
        else:
            pieces += part
    assert last is not None
    return pieces, last


def play(work: Coroutine[Any, Any, None]) -> None:
    run_virtually(work)


@pytest.mark.parametrize(
    ("requests", "calls_made"),
    [
        ([ask(), ask(), ask()], 1),
        ([ask(), ask("Cold?")], 2),
        ([ask(), ask(max_tokens=7)], 2),
        ([ask(temperature=0.5), ask(temperature=0.5)], 2),
        ([ask(temperature=0.5, seed=1), ask(temperature=0.5, seed=1)], 1),
    ],
)
def test_only_the_very_same_question_is_shared(
    requests: list[CompletionRequest], calls_made: int
) -> None:
    async def story() -> None:
        provider = ScriptedProvider()
        calls = SharedCalls(provider)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(whole(calls, request)) for request in requests]
        assert len(provider.requests) == calls_made
        results = [task.result() for task in asked]
        assert {pieces for pieces, _ in results} == {"[scripted answer]"}
        assert sum(last.cost_usd > 0 for _, last in results) == calls_made
        assert sum(last.shared for _, last in results) == len(requests) - calls_made
        await calls.close()

    play(story())


def test_nothing_is_kept_once_a_call_has_ended() -> None:
    async def story() -> None:
        provider = ScriptedProvider()
        calls = SharedCalls(provider)
        for _ in range(2):
            _, last = await whole(calls, ask())
            assert not last.shared
        assert len(provider.requests) == 2
        await calls.close()

    play(story())


def test_the_call_goes_on_until_the_last_one_leaves() -> None:
    async def story() -> None:
        provider = ScriptedProvider(HANGS)
        calls = SharedCalls(provider)
        first = asyncio.create_task(whole(calls, ask()))
        second = asyncio.create_task(whole(calls, ask()))
        await provider.until_inflight(1)
        first.cancel()
        await asyncio.wait({first})
        assert provider.inflight == 1
        second.cancel()
        await asyncio.wait({second})
        await provider.until_inflight(0)
        _, last = await whole(calls, ask())  # nobody joins what was given up
        assert not last.shared
        await calls.close()

    play(story())


def test_a_late_one_sees_the_answer_from_its_beginning() -> None:
    async def story() -> None:
        provider = ScriptedProvider(HANGS)
        calls = SharedCalls(provider)
        first = asyncio.create_task(whole(calls, ask()))
        await provider.until_inflight(1)
        await asyncio.sleep(10)
        async with aclosing(calls.stream(ask())) as parts:
            assert await anext(parts) == "[scripted "
        first.cancel()
        await asyncio.wait({first})
        await calls.close()

    play(story())


def test_the_deadline_of_the_first_does_not_end_a_later_one() -> None:
    async def story() -> None:
        provider = ScriptedProvider(HANGS)
        calls = SharedCalls(provider)
        first = asyncio.create_task(whole(calls, ask(timeout_ms=5_000)))
        await provider.until_inflight(1)
        pieces, last = await whole(calls, ask(timeout_ms=20_000))
        assert (pieces, last.text, last.shared) == ("[scripted answer]", "[scripted answer]", False)
        with pytest.raises(ProviderError):
            await first
        await calls.close()

    play(story())


def test_nobody_waits_beyond_his_own_deadline() -> None:
    async def story() -> None:
        provider = ScriptedProvider(HANGS)
        calls = SharedCalls(provider)
        first = asyncio.create_task(whole(calls, ask(timeout_ms=50_000)))
        await provider.until_inflight(1)
        with pytest.raises(ProviderError) as caught:
            await whole(calls, ask(timeout_ms=5_000))
        assert caught.value.code == "provider_timeout"
        assert not first.done()
        first.cancel()
        await asyncio.wait({first})
        await calls.close()

    play(story())


def test_a_failure_is_everybodys() -> None:
    async def story() -> None:
        error = provider_errors.refused(503)
        calls = SharedCalls(ScriptedProvider(ScriptedAnswer(pieces=(), error=error)))
        asked = [asyncio.create_task(whole(calls, ask())) for _ in range(3)]
        await asyncio.wait(asked)
        assert [task.exception() for task in asked] == [error] * 3
        await calls.close()

    play(story())
