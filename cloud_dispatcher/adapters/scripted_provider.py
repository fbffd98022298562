"""A provider without a network: answers what it was told to, for tests of everything above it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import msgspec

from cloud_dispatcher.adapters.provider_errors import out_of_time
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, CompletionPart, ProviderError
from fleet_protocol.messages import EndpointView, Usage


class ScriptedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How one call goes.

    Attributes:
        pieces: Streamed one by one; the whole is their sum.
        hang: After the pieces nothing more comes, until the deadline or the caller's patience ends.
        error: Raised after the pieces, instead of the whole.
    """

    pieces: tuple[str, ...] = ("[scripted ", "answer]")
    usage: Usage = Usage(prompt_tokens=8, completion_tokens=2)
    cost_usd: float = 0.000_002
    model: str = "scripted"
    simulated: bool = True
    hang: bool = False
    error: ProviderError | None = None


class ScriptedProvider:
    """Plays one `ScriptedAnswer` for each call, then the default one for ever.

    It is an `Endpoint` of a chain as well.

    Attributes:
        settings: As an endpoint of a chain has them.
        requests: What was asked, in order.
        inflight: Calls being answered now.
        balance: What `has_balance` says; an error is raised.
        balance_asked: How often it was asked.
    """

    def __init__(
        self,
        *answers: ScriptedAnswer,
        name: str = "scripted",
        settings: ProviderSettings | None = None,
    ) -> None:
        self.settings = settings or ProviderSettings(name=name, model="scripted")
        self.requests: list[CompletionRequest] = []
        self.inflight = 0
        self.closed = False
        self.balance: bool | ProviderError | None = True
        self.balance_asked = 0
        self._answers = deque(answers)
        self._changed = asyncio.Condition()

    @property
    def name(self) -> str:
        """As it was given."""
        return self.settings.name

    @property
    def endpoints(self) -> tuple[EndpointView, ...]:
        """Itself, always well."""
        name, model = self.settings.name, self.settings.model
        return (EndpointView(name=name, model=model, state="closed", inflight=self.inflight),)

    async def has_balance(self) -> bool | None:
        """Say what `balance` holds."""
        self.balance_asked += 1
        if isinstance(self.balance, ProviderError):
            raise self.balance
        return self.balance

    def script(self, *answers: ScriptedAnswer) -> None:
        """Replace the script."""
        self._answers = deque(answers)

    async def until_inflight(self, calls: int) -> None:
        """Wait until exactly so many calls are being answered."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.inflight == calls)

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[CompletionPart, None]:
        """Play the next answer; raises what it says, or `provider_timeout` after a hang."""
        self.requests.append(request)
        answer = self._answers.popleft() if self._answers else ScriptedAnswer()
        await self._count(1)
        try:
            for piece in answer.pieces:
                yield piece
            if answer.hang:
                await asyncio.sleep(request.timeout_ms / 1_000)
                raise out_of_time()
            if answer.error is not None:
                raise answer.error
            yield Completion(
                text="".join(answer.pieces),
                model=answer.model,
                usage=answer.usage,
                cost_usd=answer.cost_usd,
                simulated=answer.simulated,
                provider=self.settings.name,
            )
        finally:
            await self._count(-1)

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    async def _count(self, change: int) -> None:
        self.inflight += change
        async with self._changed:
            self._changed.notify_all()
