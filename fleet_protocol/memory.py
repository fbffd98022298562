"""A bus without a network: the fake that ships, held to the same contract as `MqttBus`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Self

from msgspec.structs import replace

from fleet_protocol.bus import (
    BusEvent,
    Confirmed,
    Delivery,
    LinkDown,
    LinkUp,
    Publication,
    Refused,
    Session,
)
from fleet_protocol.errors import BusClosedError, BusFullError
from fleet_protocol.inbox import Inbox
from fleet_protocol.memory_broker import Faults, MemoryBroker

__all__ = ["Faults", "MemoryBroker", "MemoryBus"]


class MemoryBus:
    """A `MessageBus` on a `MemoryBroker`.

    It does not reconnect by itself: `MemoryBroker.heal` and `start` say when the link is back.

    Args:
        broker: Shared with the other clients.
        session: Who we are and what we want.
        max_unconfirmed: QoS 1 publications held while the link is down; then BusFullError.
    """

    def __init__(
        self, broker: MemoryBroker, session: Session, *, max_unconfirmed: int = 100_000
    ) -> None:
        self.session = session
        self.dropped = 0
        """QoS 0 publications that were dropped because the link was down."""
        self._broker = broker
        self._max_unconfirmed = max_unconfirmed
        # No bound: the broker's turn is the sender's, there is nobody to hold back.
        self._inbox = Inbox(max_events=1, max_bytes=1)
        self._waiting: deque[tuple[Publication, int | None]] = deque()
        self._is_up = False
        self._closed: BusClosedError | None = None

    def __repr__(self) -> str:
        state = "up" if self._is_up else "closed" if self._closed else "down"
        return f"<MemoryBus {self.session.client_id} {state}, {len(self._waiting)} unconfirmed>"

    async def __aenter__(self) -> Self:
        """Connect and subscribe.

        Raises:
            RetryableError: `broker_unreachable`: the broker is stopped.
        """
        self._broker.connect(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Say goodbye."""
        if self._closed is None:
            self._broker.leave(self.session.client_id)
            self.end(BusClosedError("the bus was closed"))

    async def receive(self) -> list[BusEvent]:
        """Wait for at least one event and return all there are; see `MessageBus`."""
        return self._broker.disturb(await self._inbox.take())

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Release deliveries; of an earlier connection: no effect."""
        if self._is_up:
            receipts = [delivery.receipt for delivery in deliveries]
            self._broker.settle(self.session.client_id, receipts)

    def publish(self, publication: Publication) -> None:
        """Send now, or keep a QoS 1 message until the link is back; see `MessageBus`.

        Raises:
            BusFullError: Too much waits; nothing was queued.
            BusClosedError: The bus is closed.
        """
        if self._closed is not None:
            raise self._closed
        if self._is_up:
            self._tell(publication)
        elif not publication.qos:
            self.dropped += 1
        elif len(self._waiting) >= self._max_unconfirmed:
            raise BusFullError(f"{len(self._waiting)} publications wait", retry_after_ms=100)
        else:
            expiry_s = publication.expiry_s
            now_ms = self._broker.now_ms
            self._waiting.append(
                (publication, None if expiry_s is None else now_ms + expiry_s * 1_000)
            )

    def subscribe(self, filters: Iterable[str]) -> None:
        """Hear these, too; see `MessageBus`."""
        before = self.session.subscriptions
        added = tuple(x for x in dict.fromkeys(filters) if x not in before)
        self.session = replace(self.session, subscriptions=before + added)
        if self._is_up:
            self._broker.subscribe(self.session, added)

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Hear these no longer."""
        gone = set(filters)
        kept = tuple(x for x in self.session.subscriptions if x not in gone)
        self.session = replace(self.session, subscriptions=kept)
        if self._is_up:
            self._broker.subscribe(self.session, ())

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._is_up

    # ---------------------------------------------------------------- called by the broker

    def put(self, event: BusEvent) -> None:
        """Take an event."""
        self._inbox.put(event)

    def link_lost(self, reason: str) -> None:
        """Take note that the link is down."""
        self._is_up = False
        self._inbox.put(LinkDown(reason))

    def link_restored(self, *, session_present: bool) -> None:
        """Take note that the link is up."""
        self._is_up = True
        self._inbox.put(LinkUp(session_present))

    def send_waiting(self) -> None:
        """Send what waited for the link."""
        while self._waiting and self._is_up:
            publication, expires_at_ms = self._waiting.popleft()
            if expires_at_ms is not None and expires_at_ms <= self._broker.now_ms:
                self._inbox.put(Refused(publication.token, "expired", publication.topic))
            else:
                self._tell(publication)

    def end(self, error: BusClosedError) -> None:
        """Stop for good."""
        self._is_up = False
        self._closed = self._closed or error
        self._inbox.close(self._closed)

    def _tell(self, publication: Publication) -> None:
        code = self._broker.take(self.session.client_id, publication)
        if code:
            self._inbox.put(Refused(publication.token, code, publication.topic))
        elif publication.qos and publication.token is not None:
            self._inbox.put(Confirmed(publication.token))
