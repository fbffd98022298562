"""A wire between the store and its server: it swallows what one of them says, and can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class Relay:
    """Relays a port on loopback to another one, within the test's own loop.

    Attributes:
        swallowed: Something was, since it was told to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._mute: str = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self._server.sockets[0].getsockname()[1])

    def swallow_questions(self) -> None:
        """Let nothing through to the server any more."""
        self._mute = "up"

    def swallow_answers(self) -> None:
        """Let nothing through from the server any more."""
        self._mute = "down"

    def cut(self) -> None:
        """Break every connection; new ones are whole."""
        self._mute = ""
        self.swallowed.clear()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, out = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {back, out}
        await asyncio.gather(self._carry(near, out, "up"), self._carry(far, back, "down"))

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._mute == way:
                    self.swallowed.set()
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
