"""How much of a provider's account we use: calls at once, and pauses that it asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cloud_dispatcher.adapters import provider_errors as errors


class Account:
    """Admits calls in the order they came. Endpoints that share a key share their account.

    Attributes:
        inflight: Calls that hold a slot; a provider counts a call until its answer is complete.
    """

    def __init__(self, max_concurrency: int) -> None:
        self.inflight = 0
        self._max_concurrency = max_concurrency
        self._paused_until_ms = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether a call would have to wait for another one to end."""
        return self.inflight >= self._max_concurrency or any(
            not turn.done() for turn in self._waiting
        )

    def wait_ms(self, now_ms: int) -> int:
        """Return how long no call is taken; 0: it is, if there is a slot."""
        return max(0, self._paused_until_ms - now_ms)

    def throttle(self, now_ms: int, *, pause_ms: int) -> None:
        """Take note of a 429: nobody calls before the pause is over."""
        self._paused_until_ms = max(self._paused_until_ms, now_ms + pause_ms)

    @asynccontextmanager
    async def slot(self, deadline_ms: int) -> AsyncIterator[None]:
        """Hold a slot; wait for it, and for a pause to end, until the deadline on the loop's clock.

        Raises:
            ProviderError: `provider_timeout` without a slot; `provider_rate_limited` if the pause
                is longer than the deadline is away.
        """
        await self._take(deadline_ms)
        try:
            await self._settle(deadline_ms)
            yield
        finally:
            self._free()

    async def _take(self, deadline_ms: int) -> None:
        if not self.is_full:
            self.inflight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(deadline_ms / 1_000):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._free()  # it was given to us in the moment in which we left
            if isinstance(error, TimeoutError):
                raise errors.out_of_time() from None
            raise

    def _free(self) -> None:
        self.inflight -= 1
        self._admit()

    def _admit(self) -> None:
        """Give free slots to those who wait, first come first served."""
        while self._waiting and self.inflight < self._max_concurrency:
            turn = self._waiting.popleft()
            if not turn.done():
                self.inflight += 1
                turn.set_result(None)

    async def _settle(self, deadline_ms: int) -> None:
        """Wait until the pauses are over; another one may begin meanwhile."""
        while wait_ms := self.wait_ms(now_ms := loop_ms()):
            if now_ms + wait_ms >= deadline_ms:
                raise errors.busy(wait_ms)
            await asyncio.sleep(wait_ms / 1_000)


def loop_ms() -> int:
    """Return the running loop's clock, in milliseconds: it never steps, and tests can turn it."""
    return int(asyncio.get_running_loop().time() * 1_000)
