"""A page's end of the bridge: MQTT packets over a WebSocket."""

from __future__ import annotations

from contextlib import suppress

import mqtt5
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.typing import Subprotocol

from tests.integration.fleet import PATIENCE_S

MQTT = Subprotocol("mqtt")


def receive(socket: ClientConnection, kind: type[mqtt5.Packet]) -> mqtt5.Packet:
    """Return the next packet of a kind."""
    gathered = bytearray()
    while True:
        data = socket.recv(PATIENCE_S)
        assert isinstance(data, bytes)
        gathered += data
        while True:
            try:
                packet, size = mqtt5.read(memoryview(bytes(gathered)))
            except IndexError:
                break
            del gathered[:size]
            if isinstance(packet, kind):
                return packet


def ended(socket: ClientConnection) -> int:
    """Wait for the end of a bridge; return the code that it ended with."""
    with suppress(ConnectionClosed):
        while True:
            socket.recv(PATIENCE_S)
    return socket.protocol.close_code or 0
