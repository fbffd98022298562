"""The same question from several devices at once is one call, and all get its answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from cloud_dispatcher.adapters.account import loop_ms
from cloud_dispatcher.adapters.pumped_call import PumpedCall
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.core.continuity import Continuity
from cloud_dispatcher.ports import Completion, CompletionPart, CompletionProvider, ProviderError
from fleet_protocol.messages import EndpointView


class SharedCalls:
    """Joins a request to a call that is under way for the very same one, of the same tenant.

    Nothing is kept once a call has ended: this is no cache. The one who asked first pays; the call
    goes on as long as anybody waits for it. Sampled answers (temperature above 0, no seed) are
    meant to differ and are never shared.
    """

    def __init__(self, provider: CompletionProvider) -> None:
        self._provider = provider
        self._calls: dict[bytes, _Shared] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"SharedCalls({self._provider!r}, under way: {len(self._calls)})"

    @property
    def name(self) -> str:
        """The provider's."""
        return self._provider.name

    @property
    def endpoints(self) -> tuple[EndpointView, ...]:
        """The provider's."""
        return self._provider.endpoints

    async def close(self) -> None:
        """Give all calls up, and close the provider."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._provider.close()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[CompletionPart, None]:
        """Answer, alone or with others. Closing the iteration leaves; the last one hangs up.

        Raises:
            ProviderError: As the provider does; `provider_timeout` at one's own deadline.
        """
        deadline_ms, text = loop_ms() + request.timeout_ms, Continuity()
        while True:
            remaining_ms = max(1, deadline_ms - loop_ms())
            shared, leads = self._join(replace(request, timeout_ms=remaining_ms))
            try:
                async with aclosing(shared.call.listen(deadline_ms)) as parts:
                    async for part in parts:
                        if isinstance(part, Completion):
                            yield part if leads else replace(part, cost_usd=0.0, shared=True)
                            return
                        if fresh := text.grow(part):
                            yield fresh
            except ProviderError as error:
                # The deadline that ended it may have been the first one's, not ours.
                was_theirs = error.code == "provider_timeout" and error.retry_after_ms is None
                if leads or not was_theirs or loop_ms() >= deadline_ms:
                    raise
            finally:
                self._leave(shared)
            text.restart()

    def _join(self, request: CompletionRequest) -> tuple[_Shared, bool]:
        key = _key(request)
        shared = self._calls.get(key)
        if shared is not None and not shared.call.is_over:
            shared.listeners += 1
            return shared, False
        parts = self._provider.stream(request)
        shared = _Shared(key, PumpedCall(parts, name=f"shared-call-{request.job}"))
        self._tasks.add(shared.call.task)
        shared.call.task.add_done_callback(self._tasks.discard)
        shared.call.task.add_done_callback(lambda _: self._forget(shared))
        if request.generation.temperature == 0 or request.generation.seed is not None:
            self._calls[key] = shared
        return shared, True

    def _leave(self, shared: _Shared) -> None:
        shared.listeners -= 1
        if shared.listeners == 0 and not shared.call.is_over:
            self._forget(shared)  # at once: nobody must join what is being given up
            shared.call.task.cancel()

    def _forget(self, shared: _Shared) -> None:
        if self._calls.get(shared.key) is shared:
            del self._calls[shared.key]


class _Shared:
    """One call and how many wait for it."""

    def __init__(self, key: bytes, call: PumpedCall) -> None:
        self.key = key
        self.call = call
        self.listeners = 1


def _key(request: CompletionRequest) -> bytes:
    """Return what makes two requests the same; a hash, so that no prompt is kept for it."""
    said = msgspec.json.encode((request.tenant, request.messages, request.generation))
    return hashlib.sha256(said).digest()
