"""When an endpoint is left alone: closed, open, half-open. Pure: instants come in as arguments.

A pause is ten times as long as the failure took: where a refusal comes at once, asking again costs
nobody anything; where a call hangs for seconds, it does. On an evening on which a third of the
calls fails five failures in a row are chance, and half a minute without the provider is dear.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

_SpanMs = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
_PROBED_MS = 1_000
"""While a probe is under way, others may ask again after this span."""
_PAUSE_TO_FAILURE = 10


class BreakerState(StrEnum):
    """Closed: calls go through. Open: none does. Half-open: one at a time finds out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a breaker opens, and for how long.

    Attributes:
        failures: As many failures in a row open it.
        error_share: So does a larger share of failures than this within the window ...
        window_ms: ... of so many milliseconds ...
        window_calls: ... with at least so many calls in it.
        open_ms: How long it stays open at least: ten times as long as the last failure took, ...
        open_cap_ms: ... but no longer than this.
    """

    failures: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 5
    error_share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.5
    window_ms: _SpanMs = 10_000
    window_calls: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    open_ms: _SpanMs = 250
    open_cap_ms: _SpanMs = 5_000


class Ticket(NamedTuple):
    """A call that was let through. What it reports counts only if nothing changed meanwhile."""

    era: int


class Breaker:
    """One endpoint's breaker.

    Attributes:
        state: Of the last call or trip; an open one becomes half-open with the next call.
        reason: Why it opened, as a code; empty while it is closed.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self.state = BreakerState.CLOSED
        self.reason = ""
        self._settings = settings
        self._era = 0
        self._row = 0
        self._recent: deque[tuple[int, bool]] = deque()
        self._open_until_ms = 0
        self._probing = False

    def __repr__(self) -> str:
        return f"Breaker({self.state}, {self.reason or 'well'})"

    def ready_at_ms(self, now_ms: int) -> int:
        """Return when a call may go: `now_ms` itself, or later."""
        if self.state is BreakerState.OPEN:
            return max(now_ms, self._open_until_ms)
        return now_ms + _PROBED_MS if self._probing else now_ms

    def begin(self, now_ms: int) -> Ticket:
        """Let a call through that `ready_at_ms` allows; the first one after a pause is a probe."""
        if self.state is BreakerState.OPEN and now_ms >= self._open_until_ms:
            self._change(BreakerState.HALF_OPEN)
        if self.state is BreakerState.HALF_OPEN:
            self._probing = True
        return Ticket(self._era)

    def succeed(self, ticket: Ticket, now_ms: int) -> None:
        """The call was answered."""
        if ticket.era != self._era:
            return
        if self.state is BreakerState.HALF_OPEN:
            self.close()
        else:
            self._row = 0
            self._note(now_ms, failed=False)

    def fail(self, ticket: Ticket, now_ms: int, reason: str, *, took_ms: int = 0) -> None:
        """The call failed after `took_ms`, and the endpoint is to blame."""
        if ticket.era != self._era:
            return
        self._row += 1
        self._note(now_ms, failed=True)
        if self.state is BreakerState.HALF_OPEN or self._is_bad:
            settings = self._settings
            pause_ms = max(settings.open_ms, _PAUSE_TO_FAILURE * took_ms)
            self.trip(now_ms, reason, for_ms=min(pause_ms, settings.open_cap_ms))

    def abandon(self, ticket: Ticket) -> None:
        """The call ended in a way that says nothing about the endpoint."""
        if ticket.era == self._era:
            self._probing = False

    def trip(self, now_ms: int, reason: str, *, for_ms: int) -> None:
        """Open, or stay open, for exactly this span from now on; `reason` is a code."""
        self._open_until_ms = now_ms + for_ms
        self._change(BreakerState.OPEN)
        self.reason = reason

    def close(self) -> None:
        """Let calls through again."""
        self._change(BreakerState.CLOSED)
        self.reason = ""

    @property
    def _is_bad(self) -> bool:
        settings, calls = self._settings, len(self._recent)
        failed = sum(1 for _, is_failure in self._recent if is_failure)
        return self._row >= settings.failures or (
            calls >= settings.window_calls and failed > settings.error_share * calls
        )

    def _note(self, now_ms: int, *, failed: bool) -> None:
        self._recent.append((now_ms, failed))
        while self._recent[0][0] <= now_ms - self._settings.window_ms:
            self._recent.popleft()

    def _change(self, state: BreakerState) -> None:
        self.state = state
        self._era += 1
        self._row = 0
        self._recent.clear()
        self._probing = False
