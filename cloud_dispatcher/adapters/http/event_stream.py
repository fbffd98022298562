"""Answers that take their time: given up when the client goes away, told as events as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")

QUIET_S: Final = 15.0
"""After so long without a word a comment is sent: proxies cut what is silent."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """Nobody is there any more to be answered."""


def server_event(data: Any, *, name: str = "") -> bytes:
    """Return one server-sent event with JSON for its data."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, _T], goodbye: str = "http.disconnect"
) -> _T:
    """Do the work, and cancel it when the client goes away. The body must have been read.

    Raises:
        ClientGoneError: It went away.
    """
    doing = asyncio.create_task(work, name="http-answer")
    watching = asyncio.create_task(_gone(receive, goodbye), name="http-client")
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGoneError
        return doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


class EventStream(Response):
    """Server-sent events. When the client goes away, `events` is closed at once."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, first: bytes, headers: Mapping[str, str]
    ) -> None:
        super().__init__(
            headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._events = events
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Send all there is."""
        async with aclosing(self._events):
            try:
                await unless_gone(receive, self._send(send))
            except ClientGoneError:
                return

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for part in self._events:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive, goodbye: str) -> None:
    while (await receive())["type"] != goodbye:
        pass
