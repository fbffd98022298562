"""How much of a provider's account we use: calls at once, calls a second, tokens a minute, pauses.

First a slot, then the rates: a provider counts calls at once, and a call until its answer is whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.core.rates import Concurrency, TokenBucket

_CHARS_PER_TOKEN = 4


class Grant:
    """A call that the account let through.

    Attributes:
        used_tokens: What it really took; None until it is known: the estimate stands.
    """

    def __init__(self) -> None:
        self.used_tokens: int | None = None


class Account:
    """Admits calls in the order they came. Endpoints that share a key share their account.

    Attributes:
        inflight: Calls that hold a slot.
    """

    def __init__(self, settings: ProviderSettings) -> None:
        self.inflight = 0
        self._concurrency = Concurrency(settings.max_concurrency)
        self._requests = TokenBucket(settings.requests_per_s, settings.burst)
        per_min = settings.tokens_per_min
        self._tokens = None if per_min is None else TokenBucket(per_min / 60, per_min)
        self._paused_until_ms = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether a call would have to wait for another one to end."""
        return self.inflight >= self._concurrency.limit or any(
            not turn.done() for turn in self._waiting
        )

    def wait_ms(self, now_ms: int) -> int:
        """Return how long no call is taken; 0: it is, if there is a slot."""
        spans = [self._paused_until_ms - now_ms, self._requests.wait_ms(now_ms)]
        if self._tokens is not None:
            spans.append(self._tokens.wait_ms(now_ms))
        return max(0, *spans)

    def throttle(self, now_ms: int, *, pause_ms: int) -> None:
        """Take note of a 429: nobody calls before the pause is over, and then fewer at once."""
        self._paused_until_ms = max(self._paused_until_ms, now_ms + pause_ms)
        self._concurrency.shrink(now_ms)

    def thrive(self) -> None:
        """Take note of an answer: as many calls at once are fine."""
        self._concurrency.grow()
        self._admit()

    @asynccontextmanager
    async def slot(self, deadline_ms: int, *, tokens: int = 1) -> AsyncIterator[Grant]:
        """Hold a slot; wait for it, for the rates and for a pause to end.

        Args:
            deadline_ms: On the loop's clock; nobody waits beyond it.
            tokens: What the call will take, as far as one can tell.

        Raises:
            ProviderError: `provider_timeout` without a slot; `provider_rate_limited` if the wait is
                longer than the deadline is away.
        """
        await self._take(deadline_ms)
        grant = Grant()
        try:
            await self._keep_rates(deadline_ms, tokens)
            await self._keep_pause(deadline_ms)
            yield grant
        finally:
            self._free()
            if self._tokens is not None and grant.used_tokens is not None:
                self._tokens.give_back(tokens - grant.used_tokens)

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
        while self._waiting and self.inflight < self._concurrency.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.inflight += 1
                turn.set_result(None)

    async def _keep_rates(self, deadline_ms: int, tokens: int) -> None:
        now_ms = loop_ms()
        wait_ms = self._requests.reserve(now_ms)
        if self._tokens is not None:
            wait_ms = max(wait_ms, self._tokens.reserve(now_ms, tokens))
        try:
            await _wait(wait_ms, deadline_ms)
        except BaseException:
            self._requests.give_back(1)
            if self._tokens is not None:
                self._tokens.give_back(tokens)
            raise

    async def _keep_pause(self, deadline_ms: int) -> None:
        """Wait until pauses are over; another one may begin meanwhile."""
        while (wait_ms := self._paused_until_ms - loop_ms()) > 0:
            await _wait(wait_ms, deadline_ms)


async def _wait(wait_ms: int, deadline_ms: int) -> None:
    if loop_ms() + wait_ms >= deadline_ms:
        raise errors.busy(wait_ms)
    if wait_ms > 0:
        await asyncio.sleep(wait_ms / 1_000)


def estimate_tokens(settings: ProviderSettings, request: CompletionRequest) -> int:
    """Return what a call will take at most, prompt and answer, at four characters a token."""
    chars = len(settings.system_prompt) + sum(len(turn.content) for turn in request.messages)
    thoughts = settings.thinking_tokens if settings.thinking else 0
    return chars // _CHARS_PER_TOKEN + request.generation.max_tokens + thoughts


def loop_ms() -> int:
    """Return the running loop's clock, in milliseconds: it never steps, and tests can turn it."""
    return int(asyncio.get_running_loop().time() * 1_000)
