"""The DeepSeek provider against the simulator, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import pytest
import structlog

from cloud_dispatcher.adapters.deepseek import DeepSeekProvider
from cloud_dispatcher.adapters.provider_chain import ProviderChain
from cloud_dispatcher.adapters.providers import BackoffSettings, ProviderSettings
from cloud_dispatcher.adapters.simulated_answers import Finish, Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek, SimulatorSettings
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, CompletionPart, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey

KEY = "sk-0123456789abcdef"
PROMPT = "Is the pump in hall seven dry?"
PATIENCE_S = 30.0
NO_WAIT = BackoffSettings(attempts=3, first_s=0.001, cap_s=0.001)

Lane: TypeAlias = Callable[..., AbstractAsyncContextManager[ProviderChain]]


@pytest.fixture
async def simulator() -> AsyncIterator[SimulatedDeepSeek]:
    async with SimulatedDeepSeek(SimulatorSettings(keep_alive_every_s=0.05)) as running:
        yield running


@asynccontextmanager
async def provider_at(base_url: str, **settings: Any) -> AsyncIterator[ProviderChain]:
    now_ms = settings.pop("now_ms", 1_795_000_000_000)  # a Wednesday, 10:40 UTC: off-peak
    fields = {"base_url": base_url, "backoff": NO_WAIT} | settings
    endpoint = DeepSeekProvider(ProviderSettings(**fields), KEY, now_ms=lambda: now_ms)
    provider = ProviderChain([endpoint])
    try:
        yield provider
    finally:
        await provider.close()


@pytest.fixture
def lane(simulator: SimulatedDeepSeek) -> Lane:
    return lambda **settings: provider_at(simulator.base_url, **settings)


def ask(*, timeout_ms: int = 25_000, **generation: Any) -> CompletionRequest:
    return CompletionRequest(
        job=JobKey("01J"),
        attempt=1,
        messages=(ChatMessage(role=ChatRole.USER, content=PROMPT),),
        generation=Generation(**generation),
        timeout_ms=timeout_ms,
    )


class Outcome:
    """What a call brought: its pieces, and the whole or the error."""

    def __init__(self) -> None:
        self.pieces: list[CompletionPart] = []
        self.whole: Completion | None = None
        self.error: ProviderError | None = None

    @property
    def code(self) -> str | None:
        return self.error.code if self.error else None

    @property
    def retryable(self) -> bool:
        return self.error is not None and self.error.retry_after_ms is not None


async def outcome_of(provider: ProviderChain, request: CompletionRequest | None = None) -> Outcome:
    outcome = Outcome()
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for part in provider.stream(request or ask()):
                if isinstance(part, Completion):
                    outcome.whole = part
                else:
                    outcome.pieces.append(part)
    except ProviderError as error:
        outcome.error = error
    return outcome


class TestWhatIsSent:
    async def test_the_same_system_prompt_goes_first_with_every_call(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        async with lane(system_prompt="Be brief.\n") as provider:
            for _ in range(2):
                await outcome_of(provider)
        assert [chat.messages[0].content for chat in simulator.requests] == ["Be brief.\n"] * 2
        assert [turn.role for turn in simulator.requests[0].messages] == ["system", "user"]

    async def test_thinking_is_switched_off_and_the_generation_is_passed_on(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        async with lane(user_id="tenant-1") as provider:
            await outcome_of(provider, ask(max_tokens=7, temperature=0.5, top_p=0.9, stop=("x",)))
        (chat,) = simulator.requests
        assert not chat.thinks
        assert (chat.max_tokens, chat.temperature, chat.top_p) == (7, 0.5, 0.9)
        assert (chat.stop, chat.user_id) == (("x",), "tenant-1")

    async def test_thoughts_are_never_shown_and_do_not_use_up_the_answers_tokens(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        async with lane(thinking=True) as provider:
            outcome = await outcome_of(provider, ask(max_tokens=64, temperature=0.5))
        assert outcome.whole is not None
        assert "thought" not in outcome.whole.text
        (chat,) = simulator.requests
        assert chat.thinks
        assert chat.temperature is None
        assert chat.max_tokens == 64 + ProviderSettings().thinking_tokens


class TestWhatComesBack:
    @pytest.mark.parametrize(("finish", "is_cut"), [("stop", False), ("length", True)])
    async def test_an_answer_that_max_tokens_cut_says_so(
        self, simulator: SimulatedDeepSeek, lane: Lane, finish: Finish, *, is_cut: bool
    ) -> None:
        simulator.script(Step(finish=finish))
        async with lane() as provider:
            outcome = await outcome_of(provider)
        assert outcome.whole is not None
        assert outcome.whole.cut is is_cut


class TestClocks:
    async def test_keep_alives_do_not_reset_the_first_content_clock(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(fallback=Step(keep_alive_s=PATIENCE_S))
        async with lane(first_content_timeout_s=0.2, backoff=BackoffSettings(attempts=1)) as slow:
            outcome = await outcome_of(slow)
        assert outcome.code == "provider_timeout"
        assert outcome.retryable

    async def test_keep_alives_do_reset_the_idle_clock(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(keep_alive_s=2.5))
        async with lane(idle_timeout_s=2.0, backoff=BackoffSettings(attempts=1)) as provider:
            outcome = await outcome_of(provider)
        assert outcome.whole is not None

    @pytest.mark.parametrize("step", [Step(hang=True), Step(stall_after_chars=30)])
    async def test_silence_on_the_wire_ends_a_call(
        self, simulator: SimulatedDeepSeek, lane: Lane, step: Step
    ) -> None:
        simulator.script(step)
        async with lane(idle_timeout_s=0.2, backoff=BackoffSettings(attempts=1)) as provider:
            outcome = await outcome_of(provider)
        assert outcome.code == "provider_timeout"
        assert outcome.retryable

    async def test_the_deadline_counts_in_mid_answer_and_asks_for_no_retry(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(stall_after_chars=30))
        async with lane() as provider:
            outcome = await outcome_of(provider, ask(timeout_ms=300))
        assert (outcome.code, outcome.retryable) == ("provider_timeout", False)

    async def test_leaving_in_mid_answer_hangs_up(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(stall_after_chars=30))
        async with asyncio.timeout(PATIENCE_S), lane() as provider:
            async with aclosing(provider.stream(ask())) as parts:
                await anext(parts)
                await simulator.until_inflight(1)
            await simulator.until_inflight(0)


class TestRetries:
    @pytest.mark.parametrize(
        "failure",
        [
            Step(status=429),
            Step(status=500),
            Step(status=503),
            Step(cut_after_chars=0),
            Step(garbage=True),
            Step(blank=True),
            Step(blank=True, finish="insufficient_system_resource"),
        ],
    )
    async def test_a_call_of_which_nothing_was_shown_is_tried_again(
        self, simulator: SimulatedDeepSeek, lane: Lane, failure: Step
    ) -> None:
        simulator.script(failure, failure)
        async with lane() as provider:
            outcome = await outcome_of(provider)
        assert outcome.whole is not None
        assert "".join(map(str, outcome.pieces)) == outcome.whole.text

    async def test_after_three_attempts_the_last_error_is_told(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(status=500), Step(status=500), Step(status=429), Step(status=402))
        async with lane() as provider:
            first, second = await outcome_of(provider), await outcome_of(provider)
        assert (first.code, first.retryable) == ("provider_rate_limited", True)
        assert second.code == "provider_no_balance"  # the fourth step was left for it

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (Step(status=400), "provider_bad_request"),
            (Step(status=422), "provider_bad_request"),
            (Step(blank=True, finish="length"), "provider_blank"),
            (Step(finish="content_filter"), "provider_filtered"),
        ],
    )
    async def test_what_would_fail_again_is_not_tried_again(
        self, simulator: SimulatedDeepSeek, lane: Lane, failure: Step, code: str
    ) -> None:
        simulator.script(failure)
        async with lane() as provider:
            first, second = await outcome_of(provider), await outcome_of(provider)
        assert (first.code, first.retryable) == (code, False)
        assert second.whole is not None

    @pytest.mark.parametrize(
        ("status", "code"), [(401, "provider_denied"), (402, "provider_no_balance")]
    )
    async def test_what_fails_for_every_job_opens_the_breaker_at_once(
        self, simulator: SimulatedDeepSeek, lane: Lane, status: int, code: str
    ) -> None:
        simulator.script(Step(status=status))
        async with lane() as provider:
            first, second = await outcome_of(provider), await outcome_of(provider)
        assert (first.code, first.retryable) == (code, False)
        assert (second.code, second.retryable) == ("provider_open", True)
        assert simulator.calls == 1

    @pytest.mark.parametrize(
        "failure",
        [Step(cut_after_chars=30), Step(finish="insufficient_system_resource")],
    )
    async def test_once_text_was_shown_the_next_call_goes_on_and_never_starts_over(
        self, simulator: SimulatedDeepSeek, lane: Lane, failure: Step
    ) -> None:
        simulator.script(failure)
        async with lane() as provider:
            outcome = await outcome_of(provider)
        assert outcome.whole is not None
        assert "".join(map(str, outcome.pieces)) == outcome.whole.text
        assert len(simulator.requests) == 2

    async def test_an_answer_without_its_bill_is_an_answer(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(cut_before_usage=True))
        async with lane() as provider:
            outcome = await outcome_of(provider)
        assert outcome.whole is not None
        assert outcome.whole.cost_usd == 0

    async def test_the_pause_is_at_least_what_retry_after_asks_for(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(status=429, retry_after_s=0.3))
        loop = asyncio.get_running_loop()
        async with lane() as provider:
            started_s = loop.time()
            outcome = await outcome_of(provider)
            assert loop.time() - started_s >= 0.3
        assert outcome.whole is not None

    async def test_a_pause_beyond_the_deadline_is_told_instead_of_waited_for(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(status=429, retry_after_s=120))
        async with lane() as provider:
            outcome = await outcome_of(provider)
        assert outcome.error is not None
        assert outcome.error.retry_after_ms is not None
        assert 119_000 < outcome.error.retry_after_ms <= 120_000


class TestLimits:
    async def test_beyond_the_accounts_concurrency_a_call_is_rate_limited(self) -> None:
        settings = SimulatorSettings(max_concurrency=1)
        async with asyncio.timeout(PATIENCE_S), SimulatedDeepSeek(settings) as simulator:
            simulator.script(Step(hang=True))
            one_try = BackoffSettings(attempts=1)
            async with provider_at(simulator.base_url, backoff=one_try) as provider:
                first = asyncio.create_task(outcome_of(provider))
                await simulator.until_inflight(1)
                assert (await outcome_of(provider)).code == "provider_rate_limited"
                first.cancel()
                await asyncio.wait({first})

    async def test_our_own_limit_makes_a_call_wait_no_longer_than_its_deadline(
        self, simulator: SimulatedDeepSeek, lane: Lane
    ) -> None:
        simulator.script(Step(hang=True))
        async with asyncio.timeout(PATIENCE_S), lane(max_concurrency=1) as provider:
            first = asyncio.create_task(outcome_of(provider))
            await simulator.until_inflight(1)
            waiting = await outcome_of(provider, ask(timeout_ms=50))
            assert (waiting.code, waiting.retryable) == ("provider_timeout", False)
            assert len(simulator.requests) == 1
            first.cancel()
            await asyncio.wait({first})
            assert (await outcome_of(provider)).whole is not None  # the slot is free again

    async def test_a_provider_that_cannot_be_reached_is_unavailable(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with provider_at(f"http://127.0.0.1:{port}") as provider:
            outcome = await outcome_of(provider)
        assert (outcome.code, outcome.retryable) == ("provider_unavailable", True)


class TestBill:
    async def test_cached_tokens_are_counted_and_cost_less(self, lane: Lane) -> None:
        async with lane() as provider:
            first, second = await outcome_of(provider), await outcome_of(provider)
        assert first.whole is not None
        assert second.whole is not None
        assert first.whole.usage.cached_tokens == 0
        cached = second.whole.usage.cached_tokens
        assert cached > 0
        saved_usd = cached * (0.15 - 0.003) / 1_000_000
        assert first.whole.cost_usd - second.whole.cost_usd == pytest.approx(saved_usd)

    async def test_at_peak_an_answer_costs_twice(self, lane: Lane) -> None:
        peak = dt.datetime(2026, 11, 23, 7, tzinfo=dt.UTC)
        async with lane(system_prompt="") as off_peak:
            cheap = (await outcome_of(off_peak)).whole
        async with lane(system_prompt="", now_ms=int(peak.timestamp() * 1_000)) as on_peak:
            dear = (await outcome_of(on_peak)).whole
        assert cheap is not None
        assert dear is not None
        assert dear.usage == cheap.usage
        assert dear.cost_usd == pytest.approx(2 * cheap.cost_usd)


class TestSecrets:
    @pytest.mark.parametrize("secret", [KEY, PROMPT])
    @pytest.mark.parametrize("status", [400, 401, 503])
    async def test_key_and_prompt_are_in_no_repr_error_or_log(
        self,
        simulator: SimulatedDeepSeek,
        lane: Lane,
        caplog: pytest.LogCaptureFixture,
        *,
        secret: str,
        status: int,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        simulator.script(fallback=Step(status=status, message=f"You sent {secret[:14]} to us"))
        with structlog.testing.capture_logs() as lines:
            async with lane() as provider:
                outcome = await outcome_of(provider)
                shown = repr(provider)
        assert outcome.error is not None
        told = "".join(traceback.format_exception(outcome.error))
        everything = " ".join([told, outcome.error.hint, shown, caplog.text, str(lines)])
        assert secret[:14] not in everything

    async def test_harmless_words_of_the_provider_reach_the_reader(self, lane: Lane) -> None:
        async with lane(model="gpt-7") as provider:
            outcome = await outcome_of(provider)
        assert "Model Not Exist" in str(outcome.error)
