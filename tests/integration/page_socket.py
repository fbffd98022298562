"""A page's end of the bridge: MQTT packets over a WebSocket."""

from __future__ import annotations

from contextlib import suppress
from weakref import WeakKeyDictionary

import mqtt5
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.typing import Subprotocol

from tests.integration.fleet import PATIENCE_S

MQTT = Subprotocol("mqtt")
UNREAD: WeakKeyDictionary[ClientConnection, bytearray] = WeakKeyDictionary()
"""What came in one message with a packet that was waited for: more packets, or a part of one."""


def receive(socket: ClientConnection, kind: type[mqtt5.Packet]) -> mqtt5.Packet:
    """Return the next packet of a kind."""
    unread = UNREAD.setdefault(socket, bytearray())
    while True:
        while True:
            try:
                packet, size = mqtt5.read(memoryview(bytes(unread)))
            except IndexError:
                break
            del unread[:size]
            if isinstance(packet, kind):
                return packet
        data = socket.recv(PATIENCE_S)
        assert isinstance(data, bytes)
        unread += data


def ended(socket: ClientConnection) -> int:
    """Wait for the end of a bridge; return the code that it ended with."""
    with suppress(ConnectionClosed):
        while True:
            socket.recv(PATIENCE_S)
    return socket.protocol.close_code or 0
