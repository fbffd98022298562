"""What we hear of the broker: the filters, which may change while we are connected.

Knows no socket: it is handed a function that sends bytes, and one that gives out packet ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

import mqtt5
import structlog

from fleet_protocol import mqtt_handshake as handshake
from fleet_protocol.errors import BusClosedError, FleetError, RejectedError

_log = structlog.get_logger()

_FILTERS_IN_ONE: Final = 200
"""Filters of one packet: brokers bound the size of what they take."""
# The codec's reason codes look like IntEnums but neither hash nor compare: hence `.value`.
_FAILURE: Final = 0x80


class Filters:
    """The filters of a session, in the order in which they were added.

    Args:
        filters: The first ones.
        send: Puts bytes on the current connection.
        next_id: Gives out a packet id that is not on its way; `free_id` takes it back.
        free_id: See there.
        refused: Told why, if a filter of a kept session is refused: an error where that lasts.
    """

    def __init__(
        self,
        filters: Iterable[str],
        *,
        send: Callable[[bytes], None],
        next_id: Callable[[], int],
        free_id: Callable[[int], None],
        refused: Callable[[BusClosedError | str], None],
    ) -> None:
        self._wanted = dict.fromkeys(filters)
        self._had: Sequence[str] = ()
        self._send = send
        self._next_id = next_id
        self._free_id = free_id
        self._refused = refused
        self._asked: dict[int, tuple[str, ...]] = {}
        self._renewed: set[str] = set()
        self._is_open = False

    def all(self, *, kept: bool) -> tuple[str, ...]:
        """Return what a new connection subscribes to before anything else.

        Nothing where the broker `kept` our session: it has the filters, and may answer no
        subscription before we acknowledge what it kept for us (rumqttd). `open` renews them.
        """
        self._asked.clear()
        self._had = tuple(self._wanted)
        self._renewed = set(self._had) if kept else set()
        return () if kept else self._had

    def open(self) -> None:
        """Make up for what changed while the connection was being made; renew what was kept."""
        self._is_open = True
        had = set(self._had) - self._renewed
        self._ask(handshake.subscribe, [x for x in self._wanted if x not in had])
        self._ask(handshake.unsubscribe, [x for x in self._had if x not in self._wanted])

    def close(self) -> None:
        """The connection is gone."""
        self._is_open = False

    def add(self, filters: Iterable[str]) -> None:
        """Want these, too."""
        added = [x for x in dict.fromkeys(filters) if x not in self._wanted]
        self._wanted.update(dict.fromkeys(added))
        if self._is_open:
            self._ask(handshake.subscribe, added)

    def remove(self, filters: Iterable[str]) -> None:
        """Want these no longer."""
        gone = [x for x in dict.fromkeys(filters) if x in self._wanted]
        for pattern in gone:
            del self._wanted[pattern]
        if self._is_open:
            self._ask(handshake.unsubscribe, gone)

    def answered(self, packet: mqtt5.SubAckPacket | mqtt5.UnsubAckPacket) -> None:
        """Take the broker's word on some of them."""
        filters = self._asked.pop(packet.packet_id, None)
        if filters is None:
            return
        self._free_id(packet.packet_id)
        if self._renewed.issuperset(filters) and isinstance(packet, mqtt5.SubAckPacket):
            try:
                handshake.judge_suback(packet, filters)
            except RejectedError as error:
                self._refused(BusClosedError(str(error), code=error.code, hint=error.hint))
            except FleetError as error:
                self._refused(str(error))
            return
        for pattern, reason in zip(filters, packet.reason_codes, strict=False):
            if reason.value >= _FAILURE:
                _log.error("subscription.refused", filter=pattern, reason=reason.name)

    def _ask(self, packet_of: Callable[[Iterable[str], int], bytes], filters: list[str]) -> None:
        rest = iter(filters)
        while part := tuple(islice(rest, _FILTERS_IN_ONE)):
            packet_id = self._next_id()
            self._asked[packet_id] = part
            self._send(packet_of(part, packet_id))
