"""What arrived and waits for its turn: from the bus, and from inside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, TypeAlias

from cloud_dispatcher.core.events import AnyEvent
from fleet_protocol import topics
from fleet_protocol.bus import BusEvent, Confirmed, Delivery

Arrival: TypeAlias = BusEvent | AnyEvent

_MOST: Final = 10_000
"""Arrivals waiting; beyond it nothing more is taken from the bus, which then stops the broker."""
_COMPANY_S: Final = 0.02
"""How long what nobody waits for waits for company: a turn of its own costs more than it does."""
_HEARTBEAT: Final = f"/{topics.STATE.template.rpartition('/')[2]}"


class Arrivals:
    """In order. Heartbeats, and the broker's word on results, begin no turn for a moment."""

    def __init__(self) -> None:
        self._waiting: list[Arrival] = []
        self._called = asyncio.Event()
        self._has_room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def is_due(self) -> bool:
        """Whether a turn should begin."""
        return self._called.is_set() or len(self._waiting) >= _MOST

    def call(self) -> None:
        """Let a turn begin, whatever there is."""
        self._called.set()

    def call_within(self, delay_s: float) -> None:
        """Let a turn begin after that time; one that was to begin sooner still does.

        So an alarm is set rarely, not in each turn: whoever is called early looks and asks again.
        """
        loop = asyncio.get_running_loop()
        at_s = loop.time() + delay_s
        if self._alarm is not None:
            if self._alarm.when() <= at_s:
                return
            self._alarm.cancel()
        self._alarm = loop.call_at(at_s, self._ring)

    async def called(self) -> None:
        """Wait until a turn should begin."""
        await self._called.wait()

    def add(self, event: AnyEvent) -> None:
        """Take in what happened inside."""
        self._waiting.append(event)
        self._called.set()

    async def add_all(self, arrivals: Sequence[BusEvent]) -> None:
        """Take in what the bus delivered, and wait while there is no room for more."""
        self._waiting.extend(arrivals)
        if self._called.is_set():
            pass
        elif all(map(_can_wait, arrivals)):
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_COMPANY_S, self.call)
        else:
            self._called.set()
        if len(self._waiting) >= _MOST:
            self._has_room.clear()
            await self._has_room.wait()

    def take(self, most: int) -> list[Arrival]:
        """Return what came first, at most so much; if more is left, the next turn is due."""
        taken = self._waiting[:most]
        del self._waiting[:most]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            self._called.clear()
        self._has_room.set()
        return taken

    def _ring(self) -> None:
        self._alarm = None
        self.call()


def _can_wait(arrival: BusEvent) -> bool:
    if isinstance(arrival, Delivery):
        return arrival.receipt is None and arrival.topic.endswith(_HEARTBEAT)
    return isinstance(arrival, Confirmed)
