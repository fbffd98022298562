"""One suite for every `CompletionProvider`: the shipped fake, and a chain over the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Protocol

import pytest

from cloud_dispatcher.adapters import provider_errors
from cloud_dispatcher.adapters.answer_form import fit, instruction
from cloud_dispatcher.adapters.deepseek import DeepSeekProvider
from cloud_dispatcher.adapters.provider_chain import ProviderChain
from cloud_dispatcher.adapters.providers import BackoffSettings, ProviderSettings
from cloud_dispatcher.adapters.scripted_provider import ScriptedAnswer, ScriptedProvider
from cloud_dispatcher.adapters.shared_calls import SharedCalls
from cloud_dispatcher.adapters.simulated_answers import Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, CompletionPart, CompletionProvider, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey, OutputFormat

PATIENCE_S = 20.0


class Bench(Protocol):
    """A provider under test and what makes it answer, hang or fail."""

    provider: CompletionProvider

    def will_hang(self) -> None: ...

    def will_refuse(self, status: int) -> None: ...

    async def until_inflight(self, calls: int) -> None: ...


class ScriptedBench:
    def __init__(self) -> None:
        self.provider = ScriptedProvider()
        self.until_inflight = self.provider.until_inflight

    def will_hang(self) -> None:
        self.provider.script(ScriptedAnswer(pieces=(), hang=True))

    def will_refuse(self, status: int) -> None:
        error = provider_errors.refused(status)
        self.provider.script(ScriptedAnswer(pieces=(), error=error))


class DeepSeekBench:
    def __init__(self, simulator: SimulatedDeepSeek) -> None:
        settings = ProviderSettings(
            base_url=simulator.base_url, backoff=BackoffSettings(attempts=1, first_s=0.001)
        )
        self.provider = SharedCalls(ProviderChain([DeepSeekProvider(settings, "sk-contract")]))
        self.until_inflight = simulator.until_inflight
        self._simulator = simulator

    def will_hang(self) -> None:
        self._simulator.script(Step(hang=True))

    def will_refuse(self, status: int) -> None:
        self._simulator.script(Step(status=status))


@pytest.fixture(params=["scripted", "deepseek"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "scripted":
        yield ScriptedBench()
        return
    async with SimulatedDeepSeek() as simulator:
        deepseek = DeepSeekBench(simulator)
        yield deepseek
        await deepseek.provider.close()


def ask(*, timeout_ms: int = 20_000, output: OutputFormat | None = None) -> CompletionRequest:
    return CompletionRequest(
        job=JobKey("01J"),
        attempt=1,
        messages=(ChatMessage(role=ChatRole.USER, content="How warm is it?"),),
        generation=Generation(max_tokens=64, output=output),
        timeout_ms=timeout_ms,
    )


async def collect(provider: CompletionProvider, request: CompletionRequest) -> list[CompletionPart]:
    async with asyncio.timeout(PATIENCE_S):
        return [part async for part in provider.stream(request)]


async def test_text_comes_in_pieces_and_then_exactly_one_completion(bench: Bench) -> None:
    *pieces, last = await collect(bench.provider, ask())
    assert isinstance(last, Completion)
    assert len(pieces) > 1
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert "".join(str(piece) for piece in pieces) == last.text


async def test_an_answer_says_its_model_usage_and_cost(bench: Bench) -> None:
    last = (await collect(bench.provider, ask()))[-1]
    assert isinstance(last, Completion)
    assert last.model
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens > 0
    assert last.cost_usd > 0
    assert last.simulated
    assert last.provider == bench.provider.endpoints[0].name


@pytest.mark.parametrize(
    "output",
    [
        OutputFormat(choices=("warm", "cold")),
        OutputFormat(json=True),
        OutputFormat(
            json_schema={
                "type": "object",
                "properties": {"c": {"type": "number"}, "unit": {"enum": ["C", "F"]}},
                "required": ["c", "unit"],
            }
        ),
    ],
)
async def test_an_answer_is_of_the_form_that_was_asked_for(output: OutputFormat) -> None:
    async with SimulatedDeepSeek() as simulator:
        bench = DeepSeekBench(simulator)
        last = (await collect(bench.provider, ask(output=output)))[-1]
        await bench.provider.close()
        (asked,) = simulator.requests
    assert isinstance(last, Completion)
    assert last.misfit == ""
    assert last.text == fit(last.text, output).text
    assert asked.response_format.type == ("json_object" if output.is_json else "text")
    assert asked.system.endswith(instruction(output))


async def test_an_answer_of_another_form_says_so() -> None:
    async with SimulatedDeepSeek() as simulator:
        bench = DeepSeekBench(simulator)
        simulator.script(Step(text="It is rather warm."))
        last = (await collect(bench.provider, ask(output=OutputFormat(choices=("warm",)))))[-1]
        await bench.provider.close()
    assert isinstance(last, Completion)
    assert "none of the choices" in last.misfit
    assert "rather warm" in last.text


async def test_cancelling_the_task_gives_the_call_up(bench: Bench) -> None:
    bench.will_hang()
    call = asyncio.create_task(collect(bench.provider, ask()))
    async with asyncio.timeout(PATIENCE_S):
        await bench.until_inflight(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await bench.until_inflight(0)


async def test_closing_the_iteration_after_a_piece_gives_the_call_up(bench: Bench) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with aclosing(bench.provider.stream(ask())) as parts:  # type: ignore[type-var]
            assert await anext(parts)
        await bench.until_inflight(0)


async def test_an_answer_that_takes_longer_than_its_worth_times_out(bench: Bench) -> None:
    bench.will_hang()
    with pytest.raises(ProviderError) as caught:
        await collect(bench.provider, ask(timeout_ms=50))
    assert caught.value.code == "provider_timeout"
    assert caught.value.retry_after_ms is None
    async with asyncio.timeout(PATIENCE_S):
        await bench.until_inflight(0)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "provider_bad_request", False),
        (401, "provider_denied", False),
        (402, "provider_no_balance", False),
        (404, "provider_bad_request", False),
        (422, "provider_bad_request", False),
        (429, "provider_rate_limited", True),
        (500, "provider_unavailable", True),
        (503, "provider_unavailable", True),
    ],
)
async def test_a_refusal_becomes_a_code_and_says_whether_to_come_again(
    bench: Bench, status: int, code: str, *, retryable: bool
) -> None:
    bench.will_refuse(status)
    with pytest.raises(ProviderError) as caught:
        await collect(bench.provider, ask())
    assert caught.value.code == code
    assert (caught.value.retry_after_ms is not None) == retryable


async def test_after_a_refusal_the_next_call_is_answered(bench: Bench) -> None:
    bench.will_refuse(503)
    with pytest.raises(ProviderError):
        await collect(bench.provider, ask())
    assert isinstance((await collect(bench.provider, ask()))[-1], Completion)
