"""`/mqtt`: a page's WebSocket, pumped to the broker as whom its role says, and as nobody else."""

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

from cloud_dispatcher.adapters.http.gatekeeper import Gatekeeper
from cloud_dispatcher.adapters.http.page_identities import PageIdentities, PageIdentity
from cloud_dispatcher.adapters.http.page_traffic import PacketCutter, PageTraffic
from cloud_dispatcher.adapters.secret_file import broker_password
from fleet_protocol.errors import ConfigError, ProtocolError, RejectedError
from fleet_protocol.mqtt_handshake import tls_context

_log = structlog.get_logger(__name__)

_SUBPROTOCOL: Final = "mqtt"
_CONNECT_WAIT_S: Final = 10.0
_LOGIN_CHECK_S: Final = 2.0
_READ_BYTES: Final = 65_536
_OPEN_MAX: Final = 256
_BAD_FRAME, _NOT_ALLOWED, _TRY_LATER, _BROKER_AWAY = 1003, 1008, 1013, 1014
"""WebSocket close codes (RFC 6455, and IANA's registry for the last one)."""


class MqttBridge:
    """Lets pages speak MQTT.

    User, password, client id, will and session of a page's `CONNECT` are not passed on: who it is
    to the broker its login says. What its role may not say or hear is not passed on either.
    """

    def __init__(self, gate: Gatekeeper, identities: PageIdentities) -> None:
        self._gate = gate
        self._identities = identities
        self._open = 0

    def routes(self) -> list[WebSocketRoute]:
        """Return the path."""
        return [WebSocketRoute("/mqtt", self._serve)]

    async def _serve(self, socket: WebSocket) -> None:
        role = self._gate.role(socket)
        is_ours = self._gate.home.is_home(socket) and _SUBPROTOCOL in socket.scope["subprotocols"]
        if role is None or not is_ours:
            await socket.close()  # before it is accepted: 403
            return
        await socket.accept(subprotocol=_SUBPROTOCOL)
        session = self._gate.session(socket)
        identity = self._identities.of(role, None if session is None else session.user.name)
        if identity is None:
            message = f"the broker knows nobody with the role {role}: gateway.page.{role}"
            _log.error("bridge.no_identity", role=role.value, hint=message)
            await socket.close(_NOT_ALLOWED, message)
        elif self._open >= _OPEN_MAX:
            await socket.close(_TRY_LATER, "too many pages are open")
        else:
            await self._carry_until_over(socket, identity)

    async def _carry_until_over(self, socket: WebSocket, identity: PageIdentity) -> None:
        """Carry, and tell the page what it ended with."""
        self._open += 1
        try:
            await self._carry(socket, identity)
        except WebSocketDisconnect:
            pass
        except RejectedError as error:
            _log.warning("bridge.not_allowed", page=identity.identity.id, error=str(error)[:200])
            await _close(socket, _NOT_ALLOWED, str(error))
        except (ProtocolError, TimeoutError) as error:
            await _close(socket, _BAD_FRAME, str(error) or "no CONNECT in time")
        except (OSError, ConfigError) as error:
            _log.warning("bridge.broker_away", error=str(error))
            await _close(socket, _BROKER_AWAY, "the broker cannot be reached")
        finally:
            self._open -= 1

    async def _carry(self, socket: WebSocket, identity: PageIdentity) -> None:
        """Connect to the broker and pass on whatever comes, until either side ends."""
        cutter, broker = PacketCutter(), identity.broker
        traffic = PageTraffic(self._identities.grants(identity.identity))
        async with asyncio.timeout(_CONNECT_WAIT_S):
            connect, rest = await _read_connect(socket, cutter)
            reader, writer = await asyncio.open_connection(
                broker.host, broker.port, ssl=tls_context(broker)
            )
        try:
            writer.write(_as(identity, connect).write())
            await _until_first(
                _to_broker(socket, cutter, traffic, rest, writer),
                _to_page(reader, socket),
                self._until_logged_out(socket),
            )
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _until_logged_out(self, socket: WebSocket) -> None:
        """An open page counts as used, and ends with its login."""
        while self._gate.role(socket) is not None:  # noqa: ASYNC110 - a clock ends it, too
            await asyncio.sleep(_LOGIN_CHECK_S)
        await socket.close(_NOT_ALLOWED, "log in again")


def _as(identity: PageIdentity, asked: mqtt5.ConnectPacket) -> mqtt5.ConnectPacket:
    """Return the page's `CONNECT` with nothing left of who it says it is."""
    broker = identity.broker
    password = broker_password(broker)
    return mqtt5.ConnectPacket(
        client_id=f"page-{secrets.token_hex(6)}",
        username=broker.user,
        password=None if password is None else password.encode(),
        clean_start=True,
        keep_alive=asked.keep_alive,
        receive_max=asked.receive_max,
        max_packet_size=asked.max_packet_size,
    )


_Packets = list[tuple[mqtt5.Packet, bytes]]


async def _read_connect(
    socket: WebSocket, cutter: PacketCutter
) -> tuple[mqtt5.ConnectPacket, _Packets]:
    """Return the first packet and what came behind it; a page may send it in pieces."""
    while not (packets := cutter.take(await _receive(socket))):
        pass
    connect, _ = packets.pop(0)
    if not isinstance(connect, mqtt5.ConnectPacket):
        raise ProtocolError("the first packet must be CONNECT")
    return connect, packets


async def _to_broker(
    socket: WebSocket,
    cutter: PacketCutter,
    traffic: PageTraffic,
    packets: _Packets,
    writer: asyncio.StreamWriter,
) -> None:
    while True:
        for packet, raw in packets:
            traffic.check(packet)
            writer.write(raw)
        await writer.drain()
        packets = cutter.take(await _receive(socket))


async def _receive(socket: WebSocket) -> bytes:
    """Return what comes next; MQTT comes in binary frames alone."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    data: bytes | None = message.get("bytes")
    if data is None:
        raise ProtocolError("a text frame is not MQTT")
    return data


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
