"""What the broker told us and nobody took yet, and what we owe it an acknowledgement for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from fleet_protocol.bus import BusEvent, Delivery
from fleet_protocol.errors import BusClosedError


class Inbox:
    """Events in order, handed over all at once.

    Args:
        max_events: `is_full` from here on: the link should be read no further.
        max_bytes: The same in payload bytes.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        self._events: list[BusEvent] = []
        self._bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._taker: asyncio.Future[None] | None = None
        self._error: BusClosedError | None = None

    @property
    def is_full(self) -> bool:
        """Whether more should wait outside."""
        return len(self._events) >= self._max_events or self._bytes >= self._max_bytes

    def put(self, event: BusEvent) -> None:
        """Append one event and wake the taker."""
        self._events.append(event)
        self._wake()

    def put_all(self, events: list[Delivery], *, size_bytes: int) -> None:
        """Append what one socket read brought and wake the taker."""
        self._events += events
        self._bytes += size_bytes
        self._wake()

    def close(self, error: BusClosedError) -> None:
        """Let the taker have what is there, then raise `error`; the first call counts."""
        self._error = self._error or error
        self._wake()

    async def take(self) -> list[BusEvent]:
        """Wait for at least one event and return all.

        Raises:
            BusClosedError: `close` was called and nothing is left.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        events, self._events, self._bytes = self._events, [], 0
        return events

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)


class Receipts:
    """QoS 1 deliveries not acknowledged yet, in the order they came.

    MQTT wants acknowledgements in that order [MQTT-4.6.0-2] and iotcore ends the connection where
    they are not, so an early one waits for those before it. Receipts count up and are never used
    twice, unlike packet ids: one of an earlier connection can do no harm.
    """

    def __init__(self) -> None:
        self._packet_ids: deque[int] = deque()
        self._oldest = 0
        self._early: set[int] = set()

    def issue(self, packet_id: int) -> int:
        """Return the receipt of a delivery that just came."""
        self._packet_ids.append(packet_id)
        return self._oldest + len(self._packet_ids) - 1

    def forget_all(self) -> None:
        """The connection is gone: the broker will deliver again under new packet ids."""
        self._oldest += len(self._packet_ids)
        self._packet_ids.clear()
        self._early.clear()

    def settle(self, deliveries: Iterable[Delivery]) -> list[int]:
        """Return the packet ids that may be acknowledged now, in order."""
        acks: list[int] = []
        end = self._oldest + len(self._packet_ids)
        for delivery in deliveries:
            receipt = delivery.receipt
            if not isinstance(receipt, int) or not self._oldest <= receipt < end:
                continue
            if receipt == self._oldest:
                self._pop(acks)
            else:
                self._early.add(receipt)
            while self._oldest in self._early:
                self._early.remove(self._oldest)
                self._pop(acks)
        return acks

    def _pop(self, acks: list[int]) -> None:
        acks.append(self._packet_ids.popleft())
        self._oldest += 1
