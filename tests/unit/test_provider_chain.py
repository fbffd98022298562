"""The chain over scripted endpoints: who is blamed for what, and who pays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.adapters.provider_chain import ProviderChain
from cloud_dispatcher.adapters.providers import BackoffSettings, ProviderSettings
from cloud_dispatcher.adapters.scripted_provider import ScriptedAnswer, ScriptedProvider
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey
from tests.virtual_time import run_virtually

HANGS = ScriptedAnswer(pieces=(), hang=True)


def failing(error: ProviderError, *, cost_usd: float = 0.0) -> ScriptedAnswer:
    error.cost_usd = cost_usd
    return ScriptedAnswer(pieces=(), error=error)


def endpoint(*answers: ScriptedAnswer, name: str = "first", **settings: Any) -> ScriptedProvider:
    known = ProviderSettings(name=name, model="scripted", **settings)
    return ScriptedProvider(*answers, settings=known)


def chain_of(*endpoints: ScriptedProvider) -> ProviderChain:
    return ProviderChain(endpoints, luck=lambda: 1.0)


async def ask(chain: ProviderChain, *, timeout_ms: int = 300_000) -> Completion:
    request = CompletionRequest(
        job=JobKey("01J"),
        attempt=1,
        messages=(ChatMessage(role=ChatRole.USER, content="Warm?"),),
        generation=Generation(),
        timeout_ms=timeout_ms,
    )
    async for part in chain.stream(request):
        if isinstance(part, Completion):
            return part
    raise AssertionError("no whole came")


async def give_up_after(chain: ProviderChain, span_s: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(span_s):
            await ask(chain)


@pytest.mark.parametrize(("patience_s", "state"), [(9.0, "closed"), (11.0, "open")])
def test_calls_given_up_after_a_long_silence_speak_against_an_endpoint(
    patience_s: float, state: str
) -> None:
    async def story() -> None:
        chain = chain_of(endpoint(*[HANGS] * 5))
        for _ in range(5):
            await give_up_after(chain, patience_s)
        assert chain.endpoints[0].state == state
        await chain.close()

    run_virtually(story())


@pytest.mark.parametrize("status", [400, 422])
def test_bad_requests_open_no_breaker(status: int) -> None:
    async def story() -> None:
        bad = [failing(errors.refused(status)) for _ in range(20)]
        chain = chain_of(endpoint(*bad, requests_per_s=1_000))
        for _ in range(20):
            with pytest.raises(ProviderError):
                await ask(chain)
        assert chain.endpoints[0].state == "closed"
        await chain.close()

    run_virtually(story())


def test_a_model_that_one_endpoint_does_not_have_another_may() -> None:
    async def story() -> None:
        chain = chain_of(endpoint(failing(errors.refused(404))), endpoint(name="second"))
        assert (await ask(chain)).provider == "second"
        await chain.close()

    run_virtually(story())


def test_a_backup_that_refuses_a_request_does_not_end_it_for_the_first() -> None:
    async def story() -> None:
        first = endpoint(failing(errors.refused(503)))
        chain = chain_of(first, endpoint(failing(errors.refused(400)), name="second"))
        assert (await ask(chain)).provider == "first"
        await chain.close()

    run_virtually(story())


def test_what_failed_calls_cost_is_on_the_bill_of_the_answer_or_the_failure() -> None:
    async def story() -> None:
        blank = errors.blank(truncated=False)
        chain = chain_of(endpoint(failing(blank, cost_usd=0.25), ScriptedAnswer(cost_usd=0.5)))
        assert (await ask(chain)).cost_usd == 0.75
        filtered = failing(errors.filtered(), cost_usd=0.5)
        again = failing(errors.blank(truncated=False), cost_usd=0.25)
        one_try = BackoffSettings(attempts=2)
        chain = chain_of(endpoint(again, filtered, backoff=one_try))
        with pytest.raises(ProviderError) as caught:
            await ask(chain)
        assert caught.value.cost_usd == 0.75
        await chain.close()

    run_virtually(story())


def test_an_account_that_does_not_tell_its_balance_is_found_out_by_a_call() -> None:
    async def story() -> None:
        first = endpoint(failing(errors.refused(402)), balance_poll_s=100)
        first.balance = None
        chain = chain_of(first)
        with pytest.raises(ProviderError):
            await ask(chain)
        await asyncio.sleep(99)
        with pytest.raises(ProviderError):
            await ask(chain)
        await asyncio.sleep(2)
        assert (await ask(chain)).provider == "first"
        assert (len(first.requests), first.balance_asked) == (2, 1)
        await chain.close()

    run_virtually(story())


def test_a_balance_that_cannot_be_asked_for_is_asked_for_again() -> None:
    async def story() -> None:
        first = endpoint(failing(errors.refused(402)), balance_poll_s=100)
        first.balance = errors.unreachable("ConnectError")
        chain = chain_of(first)
        with pytest.raises(ProviderError):
            await ask(chain)
        await asyncio.sleep(350)
        assert (first.balance_asked, chain.endpoints[0].state) == (3, "open")
        first.balance = True
        await asyncio.sleep(100)
        assert chain.endpoints[0].state == "closed"
        await chain.close()

    run_virtually(story())


def test_an_endpoint_that_is_left_alone_takes_no_attempt_from_the_others() -> None:
    async def story() -> None:
        down = [failing(errors.refused(503)) for _ in range(5 + 20)]  # 20 probes: 5 s
        first, second = endpoint(*down), endpoint(name="second")
        chain = chain_of(first, second)
        for _ in range(5):
            assert (await ask(chain)).provider == "second"
        assert chain.endpoints[0].state == "open"
        second.script(*[failing(errors.refused(503)) for _ in range(3)])  # after 0, 1 and 3 s
        assert (await ask(chain)).provider == "first"
        await chain.close()

    run_virtually(story())


def test_each_endpoint_is_asked_as_often_as_one_job_may_and_no_more() -> None:
    async def story() -> None:
        down = [failing(errors.refused(503)) for _ in range(9)]
        first, second = endpoint(*down), endpoint(*down, name="second")
        chain = chain_of(first, second)
        with pytest.raises(ProviderError) as caught:
            await ask(chain)
        assert caught.value.code == "provider_unavailable"
        assert (len(first.requests), len(second.requests)) == (3, 3)
        await chain.close()

    run_virtually(story())


def test_nobody_asks_an_endpoint_that_no_job_would_use() -> None:
    async def story() -> None:
        down = [failing(errors.refused(503)) for _ in range(1_000)]
        first = endpoint(*down)
        chain = chain_of(first, endpoint(name="second"))
        for _ in range(5):
            await ask(chain)
        await asyncio.sleep(3_600)
        asked = len(first.requests)
        assert 5 + 100 < asked <= 5 + 120, "every 250 ms, for half a minute"
        await asyncio.sleep(3_600)
        assert len(first.requests) == asked
        assert (await ask(chain)).provider == "second"
        await asyncio.sleep(0.3)
        assert len(first.requests) > asked, "now one would"
        await chain.close()

    run_virtually(story())


def test_a_probe_leaves_no_task_behind() -> None:
    async def story() -> None:
        first = endpoint(*[failing(errors.refused(503))] * 5, HANGS)
        chain = chain_of(first, endpoint(name="second"))
        for _ in range(5):
            await ask(chain)
        await first.until_inflight(1)
        await chain.close()
        assert first.inflight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(story())


def test_endpoints_of_one_account_share_its_slots() -> None:
    async def story() -> None:
        shared = {"account": "us", "max_concurrency": 1}
        first, second = endpoint(HANGS, **shared), endpoint(name="second", **shared)
        chain = chain_of(first, second)
        hanging = asyncio.create_task(ask(chain))
        await first.until_inflight(1)
        with pytest.raises(ProviderError) as caught:
            await ask(chain, timeout_ms=1_000)
        assert caught.value.code == "provider_timeout"
        assert second.requests == []
        hanging.cancel()
        await asyncio.wait({hanging})
        await chain.close()

    run_virtually(story())
