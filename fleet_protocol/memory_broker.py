"""A broker without a network, for tests and simulations; `memory.MemoryBus` is its client.

Everything happens at once and in order, in the caller's own turn; time passes only by
`MemoryBroker.advance`. What a real broker may do to a message - lose it, deliver it twice, let it
overtake another - is done on demand, the same way for the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol

import msgspec

from fleet_protocol.bus import BusEvent, Delivery, Publication, Session
from fleet_protocol.errors import BusClosedError, RetryableError

_MIB = 1_048_576


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How often the broker misbehaves, as shares 0..1 of the deliveries.

    Attributes:
        loss: QoS 0 deliveries that never arrive.
        forgetting: QoS 1 deliveries the broker confirmed and then lost, as one killed with -9 may.
        duplication: QoS 1 deliveries that arrive twice.
        reordering: Neighbours that change places.
    """

    loss: float = 0.0
    forgetting: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0


class BrokerClient(Protocol):
    """What the broker asks of a bus."""

    session: Session

    def put(self, event: BusEvent) -> None:
        """Take an event."""
        ...

    def link_lost(self, reason: str) -> None:
        """Take note that the link is down."""
        ...

    def link_restored(self, *, session_present: bool) -> None:
        """Take note that the link is up."""
        ...

    def send_waiting(self) -> None:
        """Send what waited for the link."""
        ...

    def end(self, error: BusClosedError) -> None:
        """Stop for good."""
        ...


class _Stored(msgspec.Struct):
    """A message the broker holds, with the virtual instant it expires at."""

    publication: Publication
    expires_at_ms: int | None

    def is_alive(self, now_ms: int) -> bool:
        return self.expires_at_ms is None or now_ms < self.expires_at_ms


class _Client:
    """What the broker knows of one client id.

    `owed` is every QoS 1 message it has not acknowledged, sent or not, by receipt.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.bus: BrokerClient | None = None
        self.owed: dict[int, _Stored] = {}
        self.ends_at_ms = 0


class MemoryBroker:
    """The broker several `MemoryBus`es share.

    Args:
        seed: Of the faults.
        faults: See `Faults`; may be replaced at any time.
        max_packet_bytes: A larger payload is refused.
    """

    def __init__(
        self, *, seed: int = 0, faults: Faults | None = None, max_packet_bytes: int = 6 * _MIB
    ) -> None:
        self.faults = faults or Faults()
        self.now_ms = 0
        self.max_packet_bytes = max_packet_bytes
        self._rng = random.Random(seed)  # noqa: S311 - the same faults for the same seed
        self._is_running = True
        self._retained: dict[str, _Stored] = {}
        self._clients: dict[str, _Client] = {}
        self._cut_off: dict[str, BrokerClient] = {}
        self._exact: dict[str, list[_Client]] = {}
        self._wild: list[tuple[str, _Client]] = []
        self._denied: list[tuple[str, str]] = []
        self._last_receipt = 0

    # ---------------------------------------------------------------- for tests and simulations

    def advance(self, span_ms: int) -> None:
        """Let time pass: messages and sessions expire."""
        self.now_ms += span_ms
        for client in list(self._clients.values()):
            if client.bus is None and client.ends_at_ms <= self.now_ms:
                self._forget(client)

    def cut(self, client_id: str) -> None:
        """Break a client's link as a pulled cable would; its will is published."""
        client = self._clients[client_id]
        if client.bus is not None:
            self._lose(client, "the link was cut")
            self._publish_will(client)

    def heal(self, client_id: str) -> None:
        """Let a client whose link was cut connect again."""
        if self._is_running and client_id in self._cut_off:
            bus = self._cut_off.pop(client_id)
            self.connect(bus)

    def stop(self) -> None:
        """Break all links; sessions and retained messages stay, no will is published."""
        self._is_running = False
        for client in list(self._clients.values()):
            if client.bus is not None:
                self._lose(client, "the broker stopped")

    def start(self) -> None:
        """Run again; every client that was there comes back."""
        self._is_running = True
        for client_id in list(self._cut_off):
            self.heal(client_id)

    def forget_everything(self) -> None:
        """Amnesia, as after kill -9 without persistence: no sessions, no retained messages."""
        self.stop()
        self._retained.clear()
        for client in list(self._clients.values()):
            self._forget(client)
        self.start()

    def deny(self, client_id: str, topic_filter: str) -> None:
        """Refuse what this client publishes there, as an access list would."""
        self._denied.append((client_id, topic_filter))

    def retained(self, topic: str) -> bytes | None:
        """Return the retained payload of a topic."""
        stored = self._retained.get(topic)
        return stored.publication.payload if stored and stored.is_alive(self.now_ms) else None

    # ---------------------------------------------------------------- called by the buses

    def connect(self, bus: BrokerClient) -> None:
        """Take a client in and deliver what it is owed.

        Raises:
            RetryableError: `broker_unreachable`: the broker is stopped.
        """
        session = bus.session
        if not self._is_running:
            raise RetryableError("the broker is stopped", code="broker_unreachable")
        client = self._clients.get(session.client_id)
        if client is not None and client.bus is not None:
            self._take_over(client)
            client = self._clients.get(session.client_id)
        if client is not None and session.expiry_s == 0:
            self._forget(client)
            client = None
        owed = self._renew(client, bus)
        bus.link_restored(session_present=client is not None)
        for stored in owed:
            if stored.is_alive(self.now_ms):
                self._deliver(self._clients[session.client_id], stored, retain=False)
        self._deliver_retained(self._clients[session.client_id], session.subscriptions)
        bus.send_waiting()

    def subscribe(self, session: Session, added: Iterable[str]) -> None:
        """Take note of what a client wants now; it gets what is retained for what it added."""
        client = self._clients[session.client_id]
        self._forget(client)
        client.session = session
        self._remember(client)
        self._deliver_retained(client, tuple(added))

    def leave(self, client_id: str) -> None:
        """Let a client go that said goodbye: no will."""
        client = self._clients.get(client_id)
        if client is not None:
            self._detach(client)
        self._cut_off.pop(client_id, None)

    def take(self, client_id: str, publication: Publication) -> str:
        """Route a publication; return "" or the code of the refusal."""
        topic = publication.topic
        if not topic or any(sign in topic for sign in "+#\0"):
            return "topic_invalid"
        if len(publication.payload) > self.max_packet_bytes:
            return "too_large"
        if any(who == client_id and matches(where, topic) for who, where in self._denied):
            return "not_authorized"
        self._route(publication)
        return ""

    def settle(self, client_id: str, receipts: Iterable[object]) -> None:
        """Let go of what a client acknowledged."""
        owed = self._clients[client_id].owed
        for receipt in receipts:
            if isinstance(receipt, int):
                owed.pop(receipt, None)

    def disturb(self, events: list[BusEvent]) -> list[BusEvent]:
        """Let neighbouring deliveries change places."""
        if self.faults.reordering:
            for i in range(1, len(events)):
                pair = (events[i - 1], events[i])
                if all(isinstance(event, Delivery) for event in pair) and self._happens(
                    self.faults.reordering
                ):
                    events[i - 1], events[i] = pair[1], pair[0]
        return events

    # ---------------------------------------------------------------- inside

    def _happens(self, share: float) -> bool:
        return share > 0.0 and self._rng.random() < share

    def _route(self, publication: Publication) -> None:
        expires_at_ms = None
        if publication.expiry_s is not None:
            expires_at_ms = self.now_ms + publication.expiry_s * 1_000
        stored = _Stored(publication, expires_at_ms)
        topic = publication.topic
        if publication.retain:
            if publication.payload:
                self._retained[topic] = stored
            else:
                self._retained.pop(topic, None)
        # A dict: a client with overlapping filters gets one copy, in order of subscription.
        receivers = dict.fromkeys(self._exact.get(topic, ()))
        receivers.update(dict.fromkeys(c for where, c in self._wild if matches(where, topic)))
        for client in receivers:
            self._deliver(client, stored, retain=False)

    def _deliver(self, client: _Client, stored: _Stored, *, retain: bool) -> None:
        publication, bus = stored.publication, client.bus
        faults = self.faults
        if self._happens(faults.forgetting if publication.qos else faults.loss):
            return
        receipt = None
        if publication.qos:
            self._last_receipt += 1
            receipt = self._last_receipt
            client.owed[receipt] = stored
        if bus is None:
            return
        delivery = Delivery(
            topic=publication.topic,
            payload=publication.payload,
            retain=retain,
            receipt=receipt,
            response_topic=publication.response_topic,
            correlation_data=publication.correlation_data,
        )
        bus.put(delivery)
        if publication.qos and self._happens(faults.duplication):
            bus.put(delivery)

    def _deliver_retained(self, client: _Client, filters: tuple[str, ...]) -> None:
        for topic, stored in self._retained.items():
            if stored.is_alive(self.now_ms) and any(matches(where, topic) for where in filters):
                self._deliver(client, stored, retain=True)

    def _remember(self, client: _Client) -> None:
        self._clients[client.session.client_id] = client
        for where in client.session.subscriptions:
            if "+" in where or "#" in where:
                self._wild.append((where, client))
            else:
                self._exact.setdefault(where, []).append(client)

    def _forget(self, client: _Client) -> None:
        self._clients.pop(client.session.client_id, None)
        self._wild = [entry for entry in self._wild if entry[1] is not client]
        for where in client.session.subscriptions:
            if client in self._exact.get(where, ()):
                self._exact[where].remove(client)

    def _renew(self, old: _Client | None, bus: BrokerClient) -> list[_Stored]:
        """Start a connection with fresh receipts; return what the old one left."""
        if old is not None:
            self._forget(old)
        client = _Client(bus.session)
        client.bus = bus
        self._remember(client)
        return [] if old is None else list(old.owed.values())

    def _detach(self, client: _Client) -> None:
        """Keep the session of a client that went, if it wanted that."""
        client.bus = None
        client.ends_at_ms = self.now_ms + client.session.expiry_s * 1_000
        if client.session.expiry_s == 0:
            self._forget(client)

    def _lose(self, client: _Client, reason: str) -> None:
        bus = client.bus
        self._detach(client)
        if bus is not None:
            self._cut_off[client.session.client_id] = bus
            bus.link_lost(reason)

    def _take_over(self, client: _Client) -> None:
        bus = client.bus
        self._detach(client)
        self._publish_will(client)
        if bus is not None:
            bus.end(
                BusClosedError(
                    f"another client connected as {client.session.client_id}",
                    code="session_taken_over",
                    hint="two programs share one identity: stop one, or give it its own",
                )
            )

    def _publish_will(self, client: _Client) -> None:
        if client.session.will is not None:
            self._route(client.session.will)


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether a topic falls under a filter with `+` and `#`."""
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in {"+", levels[i]}:
            return False
    return len(wanted) == len(levels)
