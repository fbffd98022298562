"""A provider call in a task of its own, whose parts any number of listeners hear from the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.ports import CompletionPart


class PumpedCall:
    """Runs from here on, whether anybody listens or not, until it ends or is cancelled.

    Attributes:
        task: Never fails; cancel it to give the call up.
        spoken: Done with the first part, or with the end if there was none.
        is_over: Nothing more comes.
        error: Why it ended without a whole; None: it did not, or not yet.
    """

    def __init__(self, parts: AsyncIterator[CompletionPart], *, name: str) -> None:
        self.is_over = False
        self.error: Exception | None = None
        self.spoken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts: list[CompletionPart] = []
        self._grown = asyncio.Event()
        self.task = asyncio.create_task(self._run(parts), name=name)

    @property
    def has_parts(self) -> bool:
        """Whether anything came."""
        return bool(self._parts)

    async def listen(self, deadline_ms: int) -> AsyncGenerator[CompletionPart, None]:
        """Yield what came and what comes.

        Args:
            deadline_ms: On the loop's clock.

        Raises:
            Exception: What the call raised.
            ProviderError: `provider_timeout` at the deadline.
        """
        place = 0
        while True:
            while place < len(self._parts):
                place += 1
                yield self._parts[place - 1]
            if self.error is not None:
                raise self.error
            if self.is_over:
                return
            try:
                async with asyncio.timeout_at(deadline_ms / 1_000):
                    await self._grown.wait()
            except TimeoutError:
                if self.is_over:
                    continue
                raise errors.out_of_time() from None

    async def _run(self, parts: AsyncIterator[CompletionPart]) -> None:
        try:
            async with aclosing(parts) as open_parts:  # type: ignore[type-var]
                async for part in open_parts:
                    self._parts.append(part)
                    self._wake()
        except Exception as error:  # noqa: BLE001 - raised again for each listener
            self.error = error
        finally:
            self.is_over = True
            self._wake()

    def _wake(self) -> None:
        if not self.spoken.done():
            self.spoken.set_result(None)
        self._grown.set()
        self._grown = asyncio.Event()
