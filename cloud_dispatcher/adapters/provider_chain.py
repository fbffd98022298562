"""The chain: which endpoint is asked when, how often, and what its failures mean for the next.

The decisions are pure (`core.breaker`, `core.chain`, `core.continuity`); here they meet the clock.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

import structlog
from msgspec.structs import replace

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.adapters.account import Account, loop_ms
from cloud_dispatcher.adapters.provider_link import Endpoint, Link
from cloud_dispatcher.adapters.pumped_call import PumpedCall
from cloud_dispatcher.core import chain
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.core.continuity import Continuity
from cloud_dispatcher.ports import Completion, CompletionPart, ProviderError
from fleet_protocol.messages import EndpointView

log = structlog.get_logger()

_CLOSED: Final = "provider_open"


class _Run:
    """One request on its way through the chain.

    Attributes:
        round: From 1; in each, every endpoint is asked once at most.
        tried: Places of those asked in this round.
        asked: How many calls of each place failed.
        out: Places of those that would fail again.
        wordy: Places of those that answered JSON mode with blanks.
        place: Where the error comes from that is being raised.
        cost_usd: What failed calls cost.
    """

    def __init__(self, request: CompletionRequest) -> None:
        self.request = request
        self.deadline_ms = loop_ms() + request.timeout_ms
        self.text = Continuity()
        self.round = 1
        self.tried: set[int] = set()
        self.asked: Counter[int] = Counter()
        self.out: set[int] = set()
        self.wordy: set[int] = set()
        self.hopeful: set[int] = set()
        self.last: ProviderError | None = None
        self.place = 0
        self.cost_usd = 0.0

    def note(self, error: ProviderError) -> None:
        """Take note of the failure at `place`; raise it if nobody is to be asked any more."""
        self.absorb(self.place, error)
        is_late = error.code == "provider_timeout" and error.retry_after_ms is None
        if is_late or not (error.elsewhere or self.hopeful - self.out):
            raise error

    def absorb(self, place: int, error: ProviderError) -> None:
        """Take note of a failure while another call goes on."""
        self.last = error
        self.cost_usd += error.cost_usd
        error.cost_usd = self.cost_usd
        self.tried.add(place)
        self.asked[place] += error.code != _CLOSED  # then nobody was asked
        if error.retry_after_ms is None:
            self.out.add(place)
        else:
            self.hopeful.add(place)
        output = self.request.generation.output
        if error.code == "provider_blank" and output is not None and output.is_json:
            # Its JSON mode is known for that: the instructions alone may do better.
            self.wordy.add(place)


class ProviderChain:
    """Endpoints in order of preference, each with its breaker and its account.

    Whatever fails before the deadline is tried elsewhere at once, and again after a pause. A device
    that saw a part of an answer never sees it start over.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        hedge_after_ms: int = 0,
        luck: Callable[[], float] = random.random,
    ) -> None:
        accounts: dict[str, Account] = {}
        for endpoint in endpoints:
            accounts.setdefault(endpoint.settings.account_name, Account(endpoint.settings))
        self._links = [
            Link(endpoint, accounts[endpoint.settings.account_name], luck=luck)
            for endpoint in endpoints
        ]
        self._backoff = endpoints[0].settings.backoff
        self._hedge_after_ms = hedge_after_ms
        self._luck = luck

    def __repr__(self) -> str:
        return f"ProviderChain({', '.join(map(repr, self._links))})"

    @property
    def name(self) -> str:
        """Its endpoints', in order."""
        return ", ".join(link.name for link in self._links)

    @property
    def endpoints(self) -> tuple[EndpointView, ...]:
        """How it stands with each of them."""
        now_ms = loop_ms()
        return tuple(link.view(now_ms) for link in self._links)

    async def close(self) -> None:
        """Close the connections; nobody asks for balances any more."""
        for link in self._links:
            await link.close()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[CompletionPart, None]:
        """Answer: pieces of text, at the end the whole. Closing the iteration hangs up.

        Raises:
            ProviderError: See `provider_errors`; nobody answered, or the deadline leaves no room
                for another call. `provider_open`: all are left alone for now.
        """
        run = _Run(request)
        for link in self._links:
            link.want()
        while True:
            place = self._choose(run)
            if place is None:
                await self._pause(run)
                continue
            try:
                async with aclosing(self._answer(place, run)) as parts:
                    async for part in parts:
                        if isinstance(part, Completion):
                            yield replace(part, cost_usd=part.cost_usd + run.cost_usd)
                            return
                        if fresh := run.text.grow(part):
                            yield fresh
            except ProviderError as error:
                run.note(error)
            run.text.restart()

    def _sights(self, skip: set[int]) -> list[chain.Sight]:
        now_ms = loop_ms()
        return [link.sight(now_ms, is_out=i in skip) for i, link in enumerate(self._links)]

    def _choose(self, run: _Run) -> int | None:
        skip = run.out | run.tried | self._spent(run)
        return chain.choose(self._sights(skip), patient=not run.tried)

    def _spent(self, run: _Run) -> set[int]:
        """Return the places of those that were asked as often as one job may."""
        return {place for place, calls in run.asked.items() if calls >= self._backoff.attempts}

    async def _pause(self, run: _Run) -> None:
        """Wait for the next round, or raise why there is none."""
        spent = self._spent(run)
        left = self._sights(run.out | spent)
        soonest_ms = chain.pause_ms(left)
        is_over = soonest_ms is None
        if soonest_ms is None:
            soonest_ms = chain.pause_ms(self._sights(run.out))
        if soonest_ms is None and run.last is not None:
            raise run.last
        backoff_ms = self._backoff.pause_ms(run.round, luck=self._luck()) if run.tried else 0
        pause_ms = max(soonest_ms or 0, backoff_ms)
        error = run.last or self._closed(pause_ms)
        error.retry_after_ms = pause_ms
        is_late = loop_ms() + pause_ms >= run.deadline_ms
        # A breaker is not waited for, unless it is ready by the end of a pause made anyway.
        is_closed = chain.is_closed(left) and pause_ms > backoff_ms
        if is_over or is_late or is_closed:
            raise error
        log.warning(
            "provider.retrying",
            job=run.request.job,
            code=error.code,
            round=run.round,
            pause_ms=pause_ms,
        )
        await asyncio.sleep(pause_ms / 1_000)
        run.round += 1
        run.tried.clear()

    def _closed(self, wait_ms: int) -> ProviderError:
        link = min(self._links, key=lambda link: link.breaker.ready_at_ms(loop_ms()))
        return errors.closed(link.name, link.breaker.reason, wait_ms=wait_ms)

    def _answer(self, place: int, run: _Run) -> AsyncGenerator[CompletionPart, None]:
        run.place = place
        if self._hedge_after_ms and not run.tried:
            return self._hedged(place, run)
        return self._call(place, run)

    async def _hedged(self, place: int, run: _Run) -> AsyncGenerator[CompletionPart, None]:
        """Ask a second endpoint where the first is silent for long; whoever speaks first wins."""
        calls = {place: self._pumped(place, run)}
        try:
            after_s = self._hedge_after_ms / 1_000
            await asyncio.wait({calls[place].spoken}, timeout=after_s)
            skip = run.out | self._spent(run) | {place}
            other = chain.choose(self._sights(skip), patient=False)
            if other is not None and not calls[place].spoken.done():
                log.info("provider.hedged", job=run.request.job, second=self._links[other].name)
                calls[other] = self._pumped(other, run)
            winner = await self._first_to_speak(calls, run)
            for each in calls.values():
                if each is not winner:
                    each.task.cancel()
            async with aclosing(winner.listen(run.deadline_ms)) as parts:
                async for part in parts:
                    yield part
        finally:
            for each in calls.values():
                each.task.cancel()
            await asyncio.gather(*(each.task for each in calls.values()), return_exceptions=True)

    async def _first_to_speak(self, calls: dict[int, PumpedCall], run: _Run) -> PumpedCall:
        """Return the call that has a part; if all failed, the last one to fail, to be heard."""
        left = dict(calls)
        while True:
            await asyncio.wait(
                {call.spoken for call in left.values()}, return_when=asyncio.FIRST_COMPLETED
            )
            for place, call in tuple(left.items()):
                if not call.spoken.done():
                    continue
                run.place = place
                if call.has_parts or len(left) == 1 or not isinstance(call.error, ProviderError):
                    return call
                run.absorb(place, call.error)
                del left[place]

    def _pumped(self, place: int, run: _Run) -> PumpedCall:
        name = f"call-{self._links[place].name}-{run.request.job}"
        return PumpedCall(self._call(place, run), name=name)

    def _call(self, place: int, run: _Run) -> AsyncGenerator[CompletionPart, None]:
        """Ask one endpoint, with what is left of the time."""

        def make() -> CompletionRequest:
            remaining_ms = max(1, run.deadline_ms - loop_ms())
            others = self._sights(run.out | run.tried | self._spent(run) | {place})
            has_other = chain.choose(others, patient=False) is not None
            patience_ms = chain.patience_ms(remaining_ms, has_other=has_other)
            return replace(
                run.request,
                timeout_ms=remaining_ms,
                first_content_ms=patience_ms,
                in_words=place in run.wordy,
            )

        return self._links[place].call(make, deadline_ms=run.deadline_ms)
