"""One endpoint of the chain with what is known of it: its breaker, its account, its balance."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, Protocol

import structlog

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.adapters.account import Account, estimate_tokens, loop_ms
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.core.breaker import Breaker, BreakerState, Ticket
from cloud_dispatcher.core.chain import Sight
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, CompletionPart, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, EndpointView, Generation, JobKey

log = structlog.get_logger()

_BLAMED: Final = frozenset({
    "provider_unavailable", "provider_timeout", "provider_cut", "provider_overloaded",
    "provider_error",
})  # fmt: skip
"""Codes that speak against an endpoint; the others against a request, a key or a purse."""
_ALIVE: Final = frozenset({"provider_bad_request", "provider_filtered"})
"""Codes that an endpoint in good health gives."""
_NO_BALANCE: Final = "provider_no_balance"
_SLOW_MS: Final = 10_000
"""A call that was given up after so long without a word speaks against its endpoint, too."""
_DENIED_MS: Final = 60_000
"""How long a refused key is not tried again."""
_WANTED_MS: Final = 30_000
"""So long after the last job that would have used it, nobody finds out about an endpoint."""


class Endpoint(Protocol):
    """What makes one call for each request."""

    settings: ProviderSettings

    def stream(self, request: CompletionRequest) -> AsyncIterator[CompletionPart]:
        """Answer; raises ProviderError."""
        ...

    async def has_balance(self) -> bool | None:
        """Ask whether the account has money, None: it does not say; raises ProviderError."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Link:
    """An endpoint in a chain.

    Attributes:
        settings: The endpoint's.
        breaker: Whether it is asked at all.
    """

    def __init__(
        self, endpoint: Endpoint, account: Account, *, luck: Callable[[], float] = random.random
    ) -> None:
        self.settings = endpoint.settings
        self.breaker = Breaker(endpoint.settings.breaker)
        self._endpoint = endpoint
        self._account = account
        self._luck = luck
        self._throttled = 0
        self._model = ""
        self._wanted_at_ms = 0
        self._watch: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Link({self._endpoint!r}, {self.breaker!r})"

    @property
    def name(self) -> str:
        """For people and logs."""
        return self.settings.name

    def sight(self, now_ms: int, *, is_out: bool = False) -> Sight:
        """Return what the choice among endpoints needs to know."""
        return Sight(
            open_ms=self.breaker.ready_at_ms(now_ms) - now_ms,
            wait_ms=self._account.wait_ms(now_ms),
            is_full=self._account.is_full,
            is_out=is_out,
        )

    def want(self) -> None:
        """Take note that a job would use it: where it is left alone, that is worth finding out."""
        self._wanted_at_ms = loop_ms()
        self._find_out()

    def view(self, now_ms: int) -> EndpointView:
        """Return what an operator sees."""
        return EndpointView(
            name=self.name,
            model=(self._model or self.settings.model)[:128],
            state=self.breaker.state.value,
            code=self.breaker.reason,
            ready_in_ms=self.breaker.ready_at_ms(now_ms) - now_ms,
            inflight=self._account.inflight,
        )

    async def close(self) -> None:
        """Close the connections; nobody asks for the balance any more, or how it is."""
        tasks = [task for task in (self._watch, self._probe) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._endpoint.close()

    async def call(
        self, make: Callable[[], CompletionRequest], *, deadline_ms: int
    ) -> AsyncGenerator[CompletionPart, None]:
        """Ask once; breaker and account learn what came of it.

        Args:
            make: Makes the request; called again when the account lets it through.
            deadline_ms: On the loop's clock.

        Raises:
            ProviderError: The endpoint's, `Account.slot`'s, or `provider_open`.
        """
        tokens = estimate_tokens(self.settings, make())
        async with self._account.slot(deadline_ms, tokens=tokens) as grant:
            ticket, began_ms = self._begin(), loop_ms()
            error: ProviderError | None = None
            spoke = whole = False
            try:
                async with aclosing(self._endpoint.stream(make())) as parts:  # type: ignore[type-var]
                    async for part in parts:
                        spoke = True
                        if isinstance(part, Completion):
                            whole = True
                            self._note_model(part.model)
                            usage = part.usage
                            grant.used_tokens = usage.prompt_tokens + usage.completion_tokens
                        yield part
            except ProviderError as caught:
                error = caught
                raise
            finally:
                before = self.breaker.state
                if whole:
                    self._throttled = 0
                    self._account.thrive()
                    self.breaker.succeed(ticket, loop_ms())
                else:
                    self._blame(ticket, error, took_ms=loop_ms() - began_ms, spoke=spoke)
                self._tell(before)

    def _begin(self) -> Ticket:
        now_ms, before = loop_ms(), self.breaker.state
        wait_ms = self.breaker.ready_at_ms(now_ms) - now_ms
        if wait_ms > 0:  # it opened while we waited for the account
            raise errors.closed(self.name, self.breaker.reason, wait_ms=wait_ms)
        ticket = self.breaker.begin(now_ms)
        self._tell(before)
        return ticket

    def _blame(
        self, ticket: Ticket, error: ProviderError | None, *, took_ms: int, spoke: bool
    ) -> None:
        """Decide what a call without an answer says of the endpoint; None: it was given up."""
        now_ms = loop_ms()
        code = "provider_timeout" if error is None else error.code
        is_final = error is None or error.retry_after_ms is None
        if code == "provider_denied":
            # Only a person mends a key.
            self.breaker.trip(now_ms, code, for_ms=_DENIED_MS)
        elif code == _NO_BALANCE:
            # Twice: a call must not find out a moment before the balance does.
            self.breaker.trip(now_ms, code, for_ms=2 * self._poll_ms)
            self._watch_balance()
        elif code == "provider_rate_limited" and error is not None:
            self.breaker.abandon(ticket)
            self._throttle(error)
        elif code in _ALIVE:
            self.breaker.succeed(ticket, now_ms)
        elif code in _BLAMED and (not is_final or (took_ms >= _SLOW_MS and not spoke)):
            self.breaker.fail(ticket, now_ms, code, took_ms=took_ms)
            self._find_out()
        else:
            self.breaker.abandon(ticket)

    def _throttle(self, error: ProviderError) -> None:
        """Obey Retry-After; without one, pause longer with every 429 in a row."""
        self._throttled += 1
        backoff_ms = self.settings.backoff.pause_ms(self._throttled, luck=self._luck())
        self._account.throttle(loop_ms(), pause_ms=error.retry_after_ms or backoff_ms)

    def _note_model(self, model: str) -> None:
        if self._model not in {"", model}:
            # Not an error: but answers, prices and caches may have changed with it.
            log.warning("provider.model_changed", provider=self.name, was=self._model, now=model)
        self._model = model

    def _tell(self, before: BreakerState) -> None:
        """Log a change of the breaker; what probes find is for those who look closely."""
        breaker, now_ms = self.breaker, loop_ms()
        if breaker.state is before:
            return
        tell = log.debug
        if before is BreakerState.CLOSED:
            tell = log.warning
        elif breaker.state is BreakerState.CLOSED:
            tell = log.info
        tell(
            f"breaker.{breaker.state.value}",
            provider=self.name,
            code=breaker.reason,
            ready_in_ms=breaker.ready_at_ms(now_ms) - now_ms,
        )

    # ---------------------------------------------------------------- after failures

    def _find_out(self) -> None:
        """Ask it ourselves while it is left alone, so that no job has to wait for its failures."""
        if self._is_in_doubt and (self._probe is None or self._probe.done()):
            probe = self._until_well()
            self._probe = asyncio.create_task(probe, name=f"probe-{self.name}")

    @property
    def _is_in_doubt(self) -> bool:
        is_wanted = loop_ms() - self._wanted_at_ms < _WANTED_MS
        is_left_alone = self.breaker.state is not BreakerState.CLOSED
        return is_wanted and is_left_alone and self.breaker.reason in _BLAMED

    async def _until_well(self) -> None:
        least_ms = self.settings.breaker.open_ms
        while self._is_in_doubt:
            wait_ms = self.breaker.ready_at_ms(loop_ms()) - loop_ms()
            await asyncio.sleep(max(wait_ms, least_ms) / 1_000)
            if self._is_in_doubt and self.breaker.ready_at_ms(loop_ms()) <= loop_ms():
                with contextlib.suppress(ProviderError):
                    await self._ask_how_it_is()

    async def _ask_how_it_is(self) -> None:
        """Make a call of some twenty tokens; the breaker learns what came of it."""
        timeout_ms = int(self.settings.first_content_timeout_s * 1_000)
        request = CompletionRequest(
            job=JobKey("probe"),
            attempt=1,
            messages=(ChatMessage(role=ChatRole.USER, content="Say OK."),),
            generation=Generation(max_tokens=4),
            timeout_ms=timeout_ms,
        )
        async with aclosing(self.call(lambda: request, deadline_ms=loop_ms() + timeout_ms)) as call:
            async for _ in call:
                pass

    # ---------------------------------------------------------------- an empty account

    @property
    def _poll_ms(self) -> int:
        return int(self.settings.balance_poll_s * 1_000)

    def _watch_balance(self) -> None:
        if self._watch is None or self._watch.done():
            watch = self._until_topped_up()
            self._watch = asyncio.create_task(watch, name=f"balance-{self.name}")

    async def _until_topped_up(self) -> None:
        """Ask for the balance, slowly; the endpoint is used again as soon as there is one.

        Where the provider does not say, a call finds out at the same pace.
        """
        while self.breaker.reason == _NO_BALANCE:
            await asyncio.sleep(self._poll_ms / 1_000)
            try:
                has_balance = await self._endpoint.has_balance()
            except ProviderError as error:
                log.warning("balance.unknown", provider=self.name, code=error.code)
                has_balance = False
            before = self.breaker.state
            if has_balance:
                self.breaker.close()
            elif before is BreakerState.OPEN:
                rest_ms = 0 if has_balance is None else 2 * self._poll_ms
                self.breaker.trip(loop_ms(), _NO_BALANCE, for_ms=rest_ms)
            self._tell(before)
            if has_balance is None:
                return
