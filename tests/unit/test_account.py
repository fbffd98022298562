"""An account's slots and pauses, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cloud_dispatcher.adapters.account import Account, loop_ms
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.ports import ProviderError
from tests.virtual_time import run_virtually


def account_of(max_concurrency: int, **settings: Any) -> Account:
    return Account(ProviderSettings(max_concurrency=max_concurrency, **settings))


def play(work: Coroutine[Any, Any, None]) -> None:
    run_virtually(work)


async def hold(account: Account, done: list[str], name: str, *, for_s: float = 1.0) -> None:
    async with account.slot(loop_ms() + 60_000):
        await asyncio.sleep(for_s)
        done.append(name)


def test_slots_are_given_in_the_order_of_asking() -> None:
    async def story() -> None:
        account, done = account_of(1), list[str]()
        async with asyncio.TaskGroup() as tasks:
            for name in "abc":
                tasks.create_task(hold(account, done, name), name=name)
        assert done == ["a", "b", "c"]
        assert (account.inflight, account.is_full) == (0, False)

    play(story())


def test_who_leaves_the_queue_takes_no_slot_along() -> None:
    async def story() -> None:
        account, done = account_of(1), list[str]()
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
        account, done = account_of(1), list[str]()
        first = account.slot(loop_ms() + 60_000)
        await first.__aenter__()
        leaving = asyncio.create_task(hold(account, done, "b"), name="b")
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # hands the slot over, and b did not see it yet
        leaving.cancel()
        await asyncio.wait({leaving})
        assert (done, account.inflight, account.is_full) == ([], 0, False)

    play(story())


def test_nobody_waits_for_a_slot_beyond_the_deadline() -> None:
    async def story() -> None:
        account, done = account_of(1), list[str]()
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
        account, began_ms = account_of(4), loop_ms()
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


async def stamp(account: Account, times_ms: list[int], **how: Any) -> None:
    async with account.slot(loop_ms() + 60_000, **how):
        times_ms.append(loop_ms())


def test_after_the_burst_calls_come_at_the_rate() -> None:
    async def story() -> None:
        account, times_ms, began_ms = account_of(64), list[int](), loop_ms()
        async with asyncio.TaskGroup() as tasks:
            for number in range(15):
                tasks.create_task(stamp(account, times_ms), name=f"call-{number}")
        assert [at_ms - began_ms for at_ms in times_ms] == [0] * 10 + [100, 200, 300, 400, 500]

    play(story())


def test_tokens_are_reserved_as_estimated_and_settled_as_used() -> None:
    async def story() -> None:
        account, times_ms, began_ms = account_of(64, tokens_per_min=6_000), list[int](), loop_ms()
        async with account.slot(began_ms + 60_000, tokens=6_000) as grant:
            grant.used_tokens = 5_000
        await stamp(account, times_ms, tokens=1_000)
        await stamp(account, times_ms, tokens=1_000)
        assert [at_ms - began_ms for at_ms in times_ms] == [0, 10_000]

    play(story())


def test_who_cannot_be_let_through_in_time_takes_nothing() -> None:
    async def story() -> None:
        account, times_ms, began_ms = account_of(64, tokens_per_min=6_000), list[int](), loop_ms()
        await stamp(account, times_ms, tokens=6_000)
        with pytest.raises(ProviderError) as caught:
            async with account.slot(began_ms + 10_000, tokens=3_000):
                pass
        assert (caught.value.code, caught.value.retry_after_ms) == ("provider_rate_limited", 30_000)
        await stamp(account, times_ms, tokens=3_000)
        assert [at_ms - began_ms for at_ms in times_ms] == [0, 30_000]

    play(story())
