"""A tenant's server: takes calls, remembers them, and answers as it is told to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.service_house import PATIENCE_S


class Call:
    """What came: headers by lower-case names, and the body."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *rest = head.decode().split("\r\n")
        self.line = line
        self.headers = dict(each.split(": ", 1) for each in rest if each)
        self.body = body

    @property
    def told(self) -> Any:
        return json.loads(self.body)

    def is_signed_with(self, secret: str) -> bool:
        """Check as the form's own page says, not as the code does."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        digest = hmac.new(key, signed + self.body, hashlib.sha256).digest()
        return self.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


class Receiver:
    """Answers with these statuses, the last of them again and again; 0: with nothing at all."""

    def __init__(self, statuses: Sequence[int]) -> None:
        self.calls: list[Call] = []
        self.url = ""
        self._statuses = list(statuses)
        self._news = asyncio.Event()

    async def call(self, *, after: int = 0) -> Call:
        """Wait for the (after + 1)-th call."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.calls) <= after:
                self._news.clear()
                await self._news.wait()
        return self.calls[after]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a call."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            call = Call(head, b"")
            call.body = await reader.readexactly(int(call.headers["content-length"]))
            status = self._statuses[0] if len(self._statuses) == 1 else self._statuses.pop(0)
            self.calls.append(call)
            self._news.set()
            if status == 0:
                await reader.read()  # until the other side has had enough
            else:
                more = "location: http://127.0.0.1:1/\r\n" if status == 302 else ""
                writer.write(f"HTTP/1.1 {status} X\r\n{more}content-length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(
    *statuses: int, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[Receiver]:
    """Listen on a free port of this machine."""
    found = Receiver(statuses or [204])
    server = await asyncio.start_server(found.serve, "127.0.0.1", port, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    found.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/hook?to=me"
    try:
        yield found
    finally:
        server.close()
