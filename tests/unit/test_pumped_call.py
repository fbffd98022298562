"""A call in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from cloud_dispatcher.adapters.account import loop_ms
from cloud_dispatcher.adapters.pumped_call import PumpedCall
from cloud_dispatcher.ports import CompletionPart, ProviderError
from tests.virtual_time import run_virtually


async def three(*, fails: bool = False) -> AsyncGenerator[CompletionPart, None]:
    for piece in "abc":
        await asyncio.sleep(1)
        yield piece
    if fails:
        raise ProviderError("it broke", code="provider_cut")


async def heard(call: PumpedCall, *, within_s: float = 60) -> str:
    return "".join([str(part) async for part in call.listen(loop_ms() + int(within_s * 1_000))])


def test_everyone_hears_all_of_it_whenever_they_come() -> None:
    async def story() -> None:
        call = PumpedCall(three(), name="call")
        early = asyncio.create_task(heard(call))
        await asyncio.sleep(1.5)
        assert call.spoken.done()
        assert not call.is_over
        assert await heard(call) == "abc"
        assert await early == "abc"
        assert await heard(call) == "abc"

    run_virtually(story())


def test_its_failure_is_raised_for_everyone_after_the_parts() -> None:
    async def story() -> None:
        call = PumpedCall(three(fails=True), name="call")
        for _ in range(2):
            with pytest.raises(ProviderError, match="it broke"):
                await heard(call)
        assert call.has_parts

    run_virtually(story())


def test_nobody_listens_beyond_the_deadline_and_the_call_goes_on() -> None:
    async def story() -> None:
        call = PumpedCall(three(), name="call")
        with pytest.raises(ProviderError) as caught:
            await heard(call, within_s=1.5)
        assert caught.value.code == "provider_timeout"
        assert await heard(call) == "abc"

    run_virtually(story())


def test_cancelling_its_task_ends_it_for_everyone() -> None:
    async def story() -> None:
        call = PumpedCall(three(), name="call")
        await asyncio.sleep(1.5)
        call.task.cancel()
        assert await heard(call) == "a"
        assert call.is_over

    run_virtually(story())
