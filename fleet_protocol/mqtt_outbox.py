"""What we told the broker and it has not confirmed yet: the outgoing window and the queue behind.

Knows no socket: it is handed a function that sends bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Final

import mqtt5
import msgspec

from fleet_protocol.bus import Confirmed, Publication, Refused
from fleet_protocol.errors import BusFullError

_AT_MOST_ONCE: Final = mqtt5.QoS.AT_MOST_ONCE
_AT_LEAST_ONCE: Final = mqtt5.QoS.AT_LEAST_ONCE
_PACKET_IDS: Final = 65_535
# The codec's reason codes look like IntEnums but neither hash nor compare: hence `.value`.
_FAILURE: Final = 0x80
_CODES: Final = {
    mqtt5.PubAckReasonCode.NOT_AUTHORIZED.value: "not_authorized",
    mqtt5.PubAckReasonCode.QUOTA_EXCEEDED.value: "quota_exceeded",
    mqtt5.PubAckReasonCode.TOPIC_NAME_INVALID.value: "topic_invalid",
}
_NOBODY: Final = mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS.value
# Topic, properties and header around the payload, at most: enough for a bound on memory.
_OVERHEAD_BYTES: Final = 256


class Unconfirmed(msgspec.Struct, gc=False):
    """A QoS 1 publication on its way.

    Attributes:
        expires_at_s: By the loop's clock; None never expires.
        packet_id: Of the latest sending; 0 before the first.
    """

    publication: Publication
    expires_at_s: float | None = None
    packet_id: int = 0


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker allows on this connection, joined with our own caps.

    Attributes:
        window: QoS 1 publications on their way at once.
        max_packet_bytes: Largest packet the broker and our own programs take.
        properties: Publications carry a content type and an expiry.
    """

    window: int
    max_packet_bytes: int
    properties: bool = True


class Outbox:
    """Sends publications in order, in a window, and again on the next connection.

    Args:
        send: Puts bytes on the current connection.
        notify: Takes the fate of a publication.
        max_messages: Unconfirmed QoS 1 publications it holds.
        max_bytes: The same in payload bytes.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        notify: Callable[[Confirmed | Refused], None],
        *,
        max_messages: int,
        max_bytes: int,
    ) -> None:
        self._send = send
        self._notify = notify
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._limits: ServerLimits | None = None
        self._reuse_ids = False
        self._last_id = 0
        self._waiting: deque[Unconfirmed] = deque()
        self._inflight: dict[int, Unconfirmed] = {}
        self._taken_ids: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._inflight)

    def open(self, limits: ServerLimits, *, session_present: bool, now_s: float) -> None:
        """Start on a new connection; what the last one left unconfirmed goes first."""
        self._limits = limits
        self._reuse_ids = session_present
        self.send_waiting(now_s)

    def close(self) -> None:
        """Take back what is on its way: the connection is gone."""
        self._limits = None
        self._taken_ids.clear()
        self._waiting.extendleft(reversed(self._inflight.values()))
        self._inflight.clear()

    def send_once(self, publication: Publication) -> bool:
        """Send a QoS 0 publication; tell whether it could be."""
        if self._limits is None:
            return False
        data = self._encode(publication, self._limits, expiry_s=publication.expiry_s)
        if data is not None:
            self._send(data)
        return True

    def send_surely(self, publication: Publication, *, now_s: float, hold: bool) -> None:
        """Take a QoS 1 publication and send it as soon as the window allows.

        Args:
            publication: What to send.
            now_s: By the loop's clock.
            hold: Keep it waiting for now: the connection is congested.

        Raises:
            BusFullError: Nothing was taken.
        """
        size = len(publication.payload) + _OVERHEAD_BYTES
        inflight, waiting = self._inflight, self._waiting
        count = len(inflight) + len(waiting)
        if count >= self._max_messages or self._held_bytes + size > self._max_bytes:
            raise BusFullError(
                f"{count} publications ({self._held_bytes} bytes) wait for the broker",
                hint="try again when some of them are confirmed",
                retry_after_ms=100,
            )
        self._held_bytes += size
        expiry_s = publication.expiry_s
        item = Unconfirmed(publication, None if expiry_s is None else now_s + expiry_s)
        limits = self._limits
        if limits is None or hold or waiting or len(inflight) >= limits.window:
            waiting.append(item)
        else:
            self._send_item(item, limits, now_s)

    def send_waiting(self, now_s: float) -> None:
        """Fill the window."""
        waiting, limits = self._waiting, self._limits
        while waiting and limits is not None and len(self._inflight) < limits.window:
            self._send_item(waiting.popleft(), limits, now_s)

    def confirm(self, ack: mqtt5.PubAckPacket) -> None:
        """Take the broker's word on a publication and let go of it."""
        item = self._inflight.pop(ack.packet_id, None)
        if item is None:
            return
        publication = item.publication
        self._held_bytes -= len(publication.payload) + _OVERHEAD_BYTES
        reason = ack.reason_code.value
        if reason >= _FAILURE:
            self._refuse(publication, _CODES.get(reason, "refused"))
        elif publication.token is not None:
            self._notify(Confirmed(publication.token, heard=reason != _NOBODY))

    def take_id(self) -> int:
        """Return a packet id for something else than a publication; `free_id` ends that."""
        packet_id = self._next_id()
        self._taken_ids.add(packet_id)
        return packet_id

    def free_id(self, packet_id: int) -> None:
        """Let an id be given out again."""
        self._taken_ids.discard(packet_id)

    def _send_item(self, item: Unconfirmed, limits: ServerLimits, now_s: float) -> None:
        expiry_s: int | None = None
        if item.expires_at_s is not None:
            expiry_s = ceil(item.expires_at_s - now_s)
            if expiry_s <= 0:
                self._let_go(item)
                self._refuse(item.publication, "expired")
                return
        is_again = self._reuse_ids and item.packet_id != 0
        if not is_again:
            item.packet_id = self._next_id()
        data = self._encode(
            item.publication,
            limits,
            packet_id=item.packet_id,
            duplicate=is_again,
            expiry_s=expiry_s,
        )
        if data is None:
            self._let_go(item)
        else:
            self._inflight[item.packet_id] = item
            self._send(data)

    def _encode(
        self,
        publication: Publication,
        limits: ServerLimits,
        *,
        packet_id: int | None = None,
        duplicate: bool = False,
        expiry_s: int | None = None,
    ) -> bytes | None:
        """Return the packet, or None after saying why the broker would not take it.

        Sending it anyway would make the broker end the connection, again and again.
        """
        topic, names = publication.topic, limits.properties
        try:
            data = mqtt5.PublishPacket(
                topic,
                publication.payload,
                qos=_AT_MOST_ONCE if packet_id is None else _AT_LEAST_ONCE,
                retain=publication.retain,
                packet_id=packet_id,
                duplicate=duplicate,
                message_expiry_interval=expiry_s if names else None,
                content_type=publication.content_type if names else None,
                response_topic=publication.response_topic,
                correlation_data=publication.correlation_data,
            ).write()
        except ValueError:
            self._refuse(publication, "topic_invalid")
            return None
        if len(data) > limits.max_packet_bytes:
            self._refuse(publication, "too_large")
            return None
        if "\0" in topic:
            self._refuse(publication, "topic_invalid")
            return None
        return data

    def _refuse(self, publication: Publication, code: str) -> None:
        self._notify(Refused(publication.token, code, publication.topic))

    def _let_go(self, item: Unconfirmed) -> None:
        self._held_bytes -= len(item.publication.payload) + _OVERHEAD_BYTES

    def _next_id(self) -> int:
        """Return a packet id that is not on its way; the window is smaller than their number."""
        while True:
            self._last_id = self._last_id % _PACKET_IDS + 1
            if self._last_id not in self._inflight and self._last_id not in self._taken_ids:
                return self._last_id
