"""An account's slots and pauses, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cloud_dispatcher.adapters.account import Account, loop_ms
from cloud_dispatcher.ports import ProviderError
from tests.virtual_time import run_virtually


def play(work: Coroutine[Any, Any, None]) -> None:
    run_virtually(work)


async def hold(account: Account, done: list[str], name: str, *, for_s: float = 1.0) -> None:
    async with account.slot(loop_ms() + 60_000):
        await asyncio.sleep(for_s)
        done.append(name)


def test_slots_are_given_in_the_order_of_asking() -> None:
    async def story() -> None:
        account, done = Account(1), list[str]()
        async with asyncio.TaskGroup() as tasks:
            for name in "abc":
                tasks.create_task(hold(account, done, name), name=name)
        assert done == ["a", "b", "c"]
        assert (account.inflight, account.is_full) == (0, False)

    play(story())


def test_who_leaves_the_queue_takes_no_slot_along() -> None:
    async def story() -> None:
        account, done = Account(1), list[str]()
        first = asyncio.create_task(hold(account, done, "a"), name="a")
        await asyncio.sleep(0)
        leaving = asyncio.create_task(hold(account, done, "b"), name="b")
        last = asyncio.create_task(hold(account, done, "c"), name="c")
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait({first, leaving, last})
        assert (done, account.inflight) == (["a", "c"], 0)

    play(story())


def test_who_leaves_in_the_moment_of_getting_a_slot_gives_it_back() -> None:
    async def story() -> None:
        account, done = Account(1), list[str]()
        first = asyncio.create_task(hold(account, done, "a", for_s=0), name="a")
        await asyncio.sleep(0)
        leaving = asyncio.create_task(hold(account, done, "b"), name="b")
        await first
        leaving.cancel()
        await asyncio.wait({leaving})
        assert (account.inflight, account.is_full) == (0, False)

    play(story())


def test_nobody_waits_for_a_slot_beyond_the_deadline() -> None:
    async def story() -> None:
        account, done = Account(1), list[str]()
        first = asyncio.create_task(hold(account, done, "a", for_s=100), name="a")
        await asyncio.sleep(0)
        with pytest.raises(ProviderError) as caught:
            async with account.slot(loop_ms() + 50):
                pass
        assert (caught.value.code, caught.value.retry_after_ms) == ("provider_timeout", None)
        await first
        assert account.inflight == 0

    play(story())


def test_after_a_429_nobody_calls_before_the_pause_is_over() -> None:
    async def story() -> None:
        account, began_ms = Account(4), loop_ms()
        account.throttle(began_ms, pause_ms=7_000)
        async with account.slot(began_ms + 60_000):
            assert loop_ms() - began_ms == 7_000
        account.throttle(loop_ms(), pause_ms=7_000)
        with pytest.raises(ProviderError) as caught:
            async with account.slot(loop_ms() + 6_999):
                pass
        assert (caught.value.code, caught.value.retry_after_ms) == ("provider_rate_limited", 7_000)
        assert account.inflight == 0

    play(story())
