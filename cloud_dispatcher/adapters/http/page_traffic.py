"""What a page says to the broker, packet by packet: its role's share of the topics and no more.

The broker's access list binds pages too, where it has one. This holds where it has none, and it
tells users of one role apart. Pure: bytes in, bytes out.
"""

from __future__ import annotations

from typing import Final

import mqtt5

from fleet_protocol.access import Access, Grant, may
from fleet_protocol.errors import ProtocolError, RejectedError

PACKET_MOST_BYTES: Final = 1_048_576
_LENGTH_BYTES: Final = 4
_PASSED_ON: Final = (
    mqtt5.PubAckPacket,
    mqtt5.PubRecPacket,
    mqtt5.PubRelPacket,
    mqtt5.PubCompPacket,
    mqtt5.UnsubscribePacket,
    mqtt5.PingReqPacket,
    mqtt5.DisconnectPacket,
)


class PacketCutter:
    """Cuts a stream into MQTT packets, however it arrives."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, data: bytes) -> list[tuple[mqtt5.Packet, bytes]]:
        """Return every packet that is whole by now, read and as it came.

        Raises:
            ProtocolError: This is not MQTT 5, or a packet is too large.
        """
        self._rest += data
        found = []
        while (size := _size_of(self._rest)) is not None:
            if size > PACKET_MOST_BYTES:
                raise ProtocolError("this packet is too large")
            if len(self._rest) < size:
                break
            raw = bytes(self._rest[:size])
            del self._rest[:size]
            try:
                packet, _ = mqtt5.read(memoryview(raw))
            except (ValueError, IndexError) as error:
                raise ProtocolError(f"this is not MQTT 5: {error}") from error
            found.append((packet, raw))
        return found


class PageTraffic:
    """Passes on what its role may say and hear, and breaks off at anything else."""

    def __init__(self, grants: tuple[Grant, ...]) -> None:
        self._grants = grants

    def check(self, packet: mqtt5.Packet) -> None:
        """Do nothing where a page may send this.

        Raises:
            RejectedError: `not_authorized`: our own page would not ask for it.
        """
        match packet:
            case mqtt5.PublishPacket(topic=topic, retain=retain):
                # A topic left empty stands for the alias of an earlier one; a request that is
                # retained would be done again after each restart of the dispatcher.
                is_allowed = may(self._grants, Access.PUBLISH, topic) and not retain
                what = f"say something on {topic!r}"
            case mqtt5.SubscribePacket(topic_filters=wanted):
                strange = [each.pattern for each in wanted if not self._may_hear(each.pattern)]
                is_allowed = not strange
                what = f"hear {', '.join(strange)!r}"
            case _:
                is_allowed = isinstance(packet, _PASSED_ON)
                what = f"send {type(packet).__name__}"
        if not is_allowed:
            raise RejectedError(f"this page may not {what}", code="not_authorized")

    def _may_hear(self, pattern: str) -> bool:
        return any(
            grant.access is Access.SUBSCRIBE and _covers(grant.filter, pattern)
            for grant in self._grants
        )


def _covers(granted: str, wanted: str) -> bool:
    """Tell whether all that a topic filter matches another one matches, too."""
    have, want = granted.split("/"), wanted.split("/")
    if have[-1] == "#":
        have.pop()
        want = want[: len(have)]
    elif "#" in want:
        return False
    return len(have) == len(want) and all(
        level == asked or (level == "+" and asked != "#")
        for level, asked in zip(have, want, strict=True)
    )


def _size_of(data: bytearray) -> int | None:
    """Return how many bytes the first packet has; None: too few are here to tell.

    Raises:
        ProtocolError: Its length has more than four bytes.
    """
    length = 0
    for place, byte in enumerate(data[1 : 2 + _LENGTH_BYTES]):
        if place == _LENGTH_BYTES:
            break
        length |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return 2 + place + length
    if len(data) > _LENGTH_BYTES:
        raise ProtocolError("this is not MQTT: the packet's length has no end")
    return None
