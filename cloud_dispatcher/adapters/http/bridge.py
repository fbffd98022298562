"""`/mqtt`: a page's WebSocket, pumped to the broker as nobody in particular."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable
from typing import Final

import mqtt5
import structlog
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cloud_dispatcher.adapters.http.gatekeeper import is_same_site
from fleet_protocol.errors import ProtocolError
from fleet_protocol.mqtt_handshake import tls_context
from fleet_protocol.settings import BrokerSettings

_log = structlog.get_logger(__name__)

_SUBPROTOCOL: Final = "mqtt"
_CONNECT_MAX_BYTES: Final = 65_536
_CONNECT_WAIT_S: Final = 10.0
_READ_BYTES: Final = 65_536
_OPEN_MAX: Final = 256
_BAD_FRAME, _TRY_LATER, _BROKER_AWAY = 1003, 1013, 1014
"""WebSocket close codes (RFC 6455, and IANA's registry for the last one)."""


class MqttBridge:
    """Lets pages speak MQTT.

    User, password, client id, will and session of a page's `CONNECT` are not passed on: to the
    broker it is nobody in particular.
    """

    def __init__(self, broker: BrokerSettings) -> None:
        self._broker = broker
        self._open = 0

    def routes(self) -> list[WebSocketRoute]:
        """Return the path."""
        return [WebSocketRoute("/mqtt", self._serve)]

    async def _serve(self, socket: WebSocket) -> None:
        if not is_same_site(socket) or _SUBPROTOCOL not in socket.scope["subprotocols"]:
            await socket.close()  # before it is accepted: 403
            return
        await socket.accept(subprotocol=_SUBPROTOCOL)
        if self._open >= _OPEN_MAX:
            await socket.close(_TRY_LATER, "too many pages are open")
            return
        self._open += 1
        try:
            await self._carry(socket)
        except WebSocketDisconnect:
            pass
        except (ProtocolError, TimeoutError) as error:
            await _close(socket, _BAD_FRAME, str(error) or "no CONNECT in time")
        except OSError as error:
            _log.warning("bridge.broker_away", error=str(error))
            await _close(socket, _BROKER_AWAY, "the broker cannot be reached")
        finally:
            self._open -= 1

    async def _carry(self, socket: WebSocket) -> None:
        """Connect to the broker and pass on whatever comes, until either side ends."""
        async with asyncio.timeout(_CONNECT_WAIT_S):
            connect, rest = await _read_connect(socket)
            reader, writer = await asyncio.open_connection(
                self._broker.host, self._broker.port, ssl=tls_context(self._broker)
            )
        try:
            writer.write(_anonymous(connect).write() + rest)
            await _until_first(_to_broker(socket, writer), _to_page(reader, socket))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _anonymous(asked: mqtt5.ConnectPacket) -> mqtt5.ConnectPacket:
    """Return the page's `CONNECT` with nothing left of who it says it is."""
    return mqtt5.ConnectPacket(
        client_id=f"page-{secrets.token_hex(6)}",
        clean_start=True,
        keep_alive=asked.keep_alive,
        receive_max=asked.receive_max,
        max_packet_size=asked.max_packet_size,
    )


async def _read_connect(socket: WebSocket) -> tuple[mqtt5.ConnectPacket, bytes]:
    """Return the first packet and what came behind it; a page may send it in pieces."""
    gathered = bytearray()
    while True:
        gathered += await socket.receive_bytes()
        try:
            packet, size = mqtt5.read(memoryview(bytes(gathered)))
        except IndexError:
            if len(gathered) > _CONNECT_MAX_BYTES:
                raise ProtocolError("this CONNECT is too large") from None
            continue
        except ValueError as error:
            raise ProtocolError(f"this is not MQTT 5: {error}") from error
        if not isinstance(packet, mqtt5.ConnectPacket):
            raise ProtocolError("the first packet must be CONNECT")
        return packet, bytes(gathered[size:])


async def _to_broker(socket: WebSocket, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(await socket.receive_bytes())
        await writer.drain()


async def _to_page(reader: asyncio.StreamReader, socket: WebSocket) -> None:
    while data := await reader.read(_READ_BYTES):
        await socket.send_bytes(data)
    await socket.close(_BROKER_AWAY, "the broker closed the connection")


async def _until_first(*pumps: Awaitable[None]) -> None:
    """Run until one ends, end the others, and raise what it ended with."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed already
        await socket.close(code, reason[:120])
