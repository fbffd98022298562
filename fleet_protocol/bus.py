"""The seam to the broker: what the programs need of it, and nothing else.

A program has one loop: `await bus.receive()` hands it everything that arrived in one turn, in
order; it decides, saves, then acknowledges and publishes. Both of those are synchronous: they queue
bytes that go out joined at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, Self, TypeAlias

import msgspec


class Delivery(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A message from the broker. QoS 1 deliveries come again unless acknowledged.

    Attributes:
        retain: The broker kept it and sent it because we subscribed; False on a live message.
        receipt: The bus's own handle for `acknowledge`; None for QoS 0.
        response_topic: MQTT 5 request/response; None from 3.1.1 clients.
    """

    topic: str
    payload: bytes
    retain: bool = False
    receipt: object | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None


class Confirmed(msgspec.Struct, frozen=True):
    """The broker has the QoS 1 publication that carried this `token`.

    Attributes:
        heard: False: the broker has it, and nobody who would be given it. True says nothing: not
            every broker tells.
    """

    token: object
    heard: bool = True


class Refused(msgspec.Struct, frozen=True):
    """The broker refused the publication that carried this `token`.

    Attributes:
        code: `not_authorized`, `quota_exceeded`, `too_large`, `topic_invalid`, `expired` (it
            waited for the link too long) or `refused`.
    """

    token: object
    code: str
    topic: str


class LinkUp(msgspec.Struct, frozen=True):
    """Connected and subscribed.

    Attributes:
        session_present: The broker still had our session, with what it queued meanwhile.
    """

    session_present: bool


class LinkDown(msgspec.Struct, frozen=True):
    """The connection is gone; the bus is already trying again.

    Attributes:
        reason: For people and logs.
    """

    reason: str


BusEvent: TypeAlias = Delivery | Confirmed | Refused | LinkUp | LinkDown


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """A message to the broker.

    Attributes:
        qos: 0 (dropped while the link is down) or 1 (kept, sent again until confirmed).
        expiry_s: MQTT 5 Message Expiry in seconds; None never expires.
        token: Comes back in `Confirmed` or `Refused`; None if nobody needs to know.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    token: object | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Who we are to the broker, and what we want of it on each connection.

    Attributes:
        client_id: Also the identity that the broker's ACL binds.
        subscriptions: Topic filters, all at QoS 1; sent on every connection.
        will: Published by the broker when we vanish.
        expiry_s: How long the broker keeps our session and queues QoS 1 messages while we are
            away; 0 starts clean each time.
    """

    client_id: str
    subscriptions: tuple[str, ...] = ()
    will: Publication | None = None
    expiry_s: int = 0


class MessageBus(Protocol):
    """A connection that heals itself. Lifetime is `async with`.

    Entering waits for the first connection and raises if it cannot be had at all (a wrong
    password); afterwards losses show as `LinkDown` and are repaired with capped, jittered backoff.
    Leaving disconnects cleanly, so no will is sent; QoS 1 publications get a bounded time to be
    confirmed first.
    """

    async def __aenter__(self) -> Self:
        """Connect and subscribe."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Flush, disconnect, stop."""
        ...

    async def receive(self) -> list[BusEvent]:
        """Wait for at least one event and return all there are, in order.

        Raises:
            BusClosedError: The bus was closed, or refused for good (`not_authorized`,
                `session_taken_over`: another client has our id).
        """
        ...

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Tell the broker that these are dealt with. Of an earlier connection: no effect.

        MQTT wants acknowledgements in the order of arrival: one waits for those before it, so
        nothing may be kept for long.
        """
        ...

    def publish(self, publication: Publication) -> None:
        """Queue a message; at QoS 0, drop it where it cannot be sent now.

        Raises:
            BusFullError: The bounded outgoing queue is full; nothing was queued. At QoS 1 alone.
            BusClosedError: The bus is closed.
        """
        ...

    def subscribe(self, filters: Iterable[str]) -> None:
        """Hear these, too, from now on and on every connection; before anything published later.

        A filter that the broker refuses is logged.
        """
        ...

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Hear these no longer; what is on its way still comes."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        ...
