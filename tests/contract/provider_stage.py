"""A chain of providers over simulators, in virtual time, for plays about what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from structlog.testing import capture_logs

from cloud_dispatcher.adapters.deepseek import DeepSeekProvider
from cloud_dispatcher.adapters.provider_chain import ProviderChain
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.adapters.shared_calls import SharedCalls
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek, SimulatorSettings
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey, OutputFormat


class Outcome:
    """What one request brought, and when."""

    def __init__(self) -> None:
        self.shown = ""
        self.whole: Completion | None = None
        self.error: ProviderError | None = None
        self.took_s = 0.0

    @property
    def code(self) -> str:
        return self.error.code if self.error else ""

    @property
    def provider(self) -> str:
        return self.whole.provider if self.whole else ""


class Stage:
    """A chain over simulators, in virtual time."""

    def __init__(self, chain: ProviderChain, simulators: list[SimulatedDeepSeek]) -> None:
        self.chain = chain
        self.calls = SharedCalls(chain)
        self.first, self.backup = simulators[0], simulators[-1]
        self.lines: list[Any] = []

    @property
    def state(self) -> str:
        return self.chain.endpoints[0].state

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def until_ready(self) -> None:
        """Let the time pass that the first endpoint is left alone for."""
        await asyncio.sleep(self.chain.endpoints[0].ready_in_ms / 1_000)

    async def ask(
        self,
        *,
        prompt: str = "How warm is it?",
        timeout_s: float = 300,
        output: OutputFormat | None = None,
    ) -> Outcome:
        outcome, loop = Outcome(), asyncio.get_running_loop()
        began_s = loop.time()
        request = CompletionRequest(
            job=JobKey("01J"),
            attempt=1,
            messages=(ChatMessage(role=ChatRole.USER, content=prompt),),
            generation=Generation(max_tokens=200, output=output),
            timeout_ms=int(timeout_s * 1_000),
        )
        try:
            async for part in self.calls.stream(request):
                if isinstance(part, Completion):
                    outcome.whole = part
                else:
                    outcome.shown += part
        except ProviderError as error:
            outcome.error = error
        outcome.took_s = round(loop.time() - began_s, 1)
        return outcome


@asynccontextmanager
async def stage(
    *, backup: bool = False, hedge_after_ms: int = 0, **settings: Any
) -> AsyncIterator[Stage]:
    """Set up a chain of one or two endpoints, each with a simulator of its own."""
    async with contextlib.AsyncExitStack() as stack:
        keep_alive = SimulatorSettings(keep_alive_every_s=5.0)
        names = ["deepseek", "backup"] if backup else ["deepseek"]
        simulators = [await stack.enter_async_context(SimulatedDeepSeek(keep_alive)) for _ in names]
        endpoints = [
            DeepSeekProvider(
                ProviderSettings(name=name, base_url=simulator.base_url, **settings), "sk-situation"
            )
            for name, simulator in zip(names, simulators, strict=True)
        ]
        chain = ProviderChain(endpoints, hedge_after_ms=hedge_after_ms, luck=lambda: 1.0)
        found = Stage(chain, simulators)
        stack.push_async_callback(found.calls.close)
        found.lines = stack.enter_context(capture_logs())
        yield found
