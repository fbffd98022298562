"""A broker that says exactly what a test tells it to: for answers no real one gives on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self, TypeAlias

import mqtt5

PATIENCE_S = 15.0

Answer: TypeAlias = bytes | None
"""Bytes to send back; None ends the connection without a word."""

Script: TypeAlias = Callable[[mqtt5.Packet], list[Answer]]

WELCOME = mqtt5.ConnAckPacket().write()
WELCOME_BACK = mqtt5.ConnAckPacket(session_present=True).write()
SUBSCRIBED = mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write()


def friendly(packet: mqtt5.Packet) -> list[Answer]:
    """Let everybody in and confirm everything."""
    if isinstance(packet, mqtt5.ConnectPacket):
        return [WELCOME]
    if isinstance(packet, mqtt5.SubscribePacket):
        return [SUBSCRIBED]
    if isinstance(packet, mqtt5.PublishPacket) and packet.packet_id is not None:
        return [mqtt5.PubAckPacket(packet.packet_id).write()]
    return []


class ScriptedBroker:
    """Answers each packet with what the script of its connection says.

    Args:
        scripts: One a connection, in order; the last one serves all later ones.
    """

    def __init__(self, *scripts: Script) -> None:
        self.packets: list[list[mqtt5.Packet]] = []
        self._scripts = scripts
        self._writers: list[asyncio.StreamWriter] = []
        self._heard = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def until(self, is_enough: Callable[[list[list[mqtt5.Packet]]], bool]) -> None:
        """Wait until the packets of all connections are what a test waits for."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_enough(self.packets):
                self._heard.clear()
                await self._heard.wait()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def send(self, data: bytes) -> None:
        """Say something unasked on the latest connection."""
        self._writers[-1].write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(len(self.packets), len(self._scripts) - 1)]
        packets: list[mqtt5.Packet] = []
        self.packets.append(packets)
        self._writers.append(writer)
        buffer = b""
        try:
            while data := await reader.read(65_536):
                buffer += data
                while buffer:
                    try:
                        packet, size = mqtt5.read(memoryview(buffer))
                    except IndexError:
                        break
                    buffer = buffer[size:]
                    packets.append(packet)
                    self._heard.set()
                    if isinstance(packet, mqtt5.DisconnectPacket):
                        return
                    for answer in script(packet):
                        if answer is None:
                            return
                        writer.write(answer)
        except ConnectionError:
            pass
        finally:
            writer.close()
