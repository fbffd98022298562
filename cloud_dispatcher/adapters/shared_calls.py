"""The same question from several devices at once is one call, and all get its answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.adapters.account import loop_ms
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
        self._calls: dict[bytes, _Call] = {}
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
            call, leads = self._join(replace(request, timeout_ms=remaining_ms))
            try:
                async with aclosing(call.listen(deadline_ms)) as parts:
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
                self._leave(call)
            text.restart()

    def _join(self, request: CompletionRequest) -> tuple[_Call, bool]:
        key = _key(request)
        call = self._calls.get(key)
        if call is not None and not call.is_over:
            call.listeners += 1
            return call, False
        call = _Call(key)
        work = call.run(self._provider, request)
        call.task = asyncio.create_task(work, name=f"shared-call-{request.job}")
        self._tasks.add(call.task)
        call.task.add_done_callback(lambda task: self._ended(call, task))
        if request.generation.temperature == 0 or request.generation.seed is not None:
            self._calls[key] = call
        return call, True

    def _leave(self, call: _Call) -> None:
        call.listeners -= 1
        if call.listeners == 0 and not call.is_over and call.task is not None:
            self._forget(call)  # at once: nobody must join what is being given up
            call.task.cancel()

    def _ended(self, call: _Call, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._forget(call)

    def _forget(self, call: _Call) -> None:
        if self._calls.get(call.key) is call:
            del self._calls[call.key]


class _Call:
    """One call, and what came of it so far."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.listeners = 1
        self.task: asyncio.Task[None] | None = None
        self.is_over = False
        self._parts: list[CompletionPart] = []
        self._error: Exception | None = None
        self._grown = asyncio.Event()

    async def run(self, provider: CompletionProvider, request: CompletionRequest) -> None:
        """Make the call; its failure is every listener's."""
        try:
            async with aclosing(provider.stream(request)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    self._parts.append(part)
                    self._wake()
        except Exception as error:  # noqa: BLE001 - raised again for each listener
            self._error = error
        finally:
            self.is_over = True
            self._wake()

    async def listen(self, deadline_ms: int) -> AsyncGenerator[CompletionPart, None]:
        """Yield what came and what comes; raises what the call raised, or at the deadline."""
        place = 0
        while True:
            while place < len(self._parts):
                place += 1
                yield self._parts[place - 1]
            if self._error is not None:
                raise self._error
            if self.is_over:
                return
            try:
                async with asyncio.timeout_at(deadline_ms / 1_000):
                    await self._grown.wait()
            except TimeoutError:
                if self.is_over:
                    continue
                raise errors.out_of_time() from None

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


def _key(request: CompletionRequest) -> bytes:
    """Return what makes two requests the same; a hash, so that no prompt is kept for it."""
    said = msgspec.json.encode((request.tenant, request.messages, request.generation))
    return hashlib.sha256(said).digest()
