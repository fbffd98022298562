"""Wires that can be cut: TCP relays on loopback, all in one thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

_R = TypeVar("_R")
_HOST = "127.0.0.1"
_PIECE_BYTES = 65_536
_PATIENCE_S = 10.0


class Link:
    """A wire to a port: whole, stalled (nothing passes, nothing ends) or cut (refused at once)."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; the port is known from here on."""
        self._server = await asyncio.start_server(self._connected, _HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut it for good."""
        await self.cut()
        if self._server is not None:
            self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def cut(self) -> None:
        """Reset every connection, with what is under way on it, and let no new one through."""
        self._is_cut = True
        for end in tuple(self._ends):
            end.transport.abort()
        self._flows.set()

    async def stall(self) -> None:
        """Let nothing through any more; no end learns of it."""
        self._flows.clear()

    async def restore(self) -> None:
        """Be whole again; what waited passes."""
        self._is_cut = False
        self._flows.set()

    async def _connected(self, near_in: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        relay = asyncio.current_task()
        if relay is not None:
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)
        await self._flows.wait()
        try:
            if self._is_cut:
                return
            far_in, far = await asyncio.open_connection(_HOST, self._target)
            self._ends |= {near, far}
            try:
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(self._carry(near_in, far), name="link-there")
                    ways.create_task(self._carry(far_in, near), name="link-back")
            finally:
                self._ends -= {near, far}
                far.transport.abort()
        except OSError:
            pass  # nobody listens there now, as on a broken wire
        finally:
            near.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(_PIECE_BYTES):
                await self._flows.wait()
                sink.write(piece)
                await sink.drain()
        # What is written still goes out; the other way then ends as well.
        sink.close()


class Links:
    """Links by the name of whom they connect. Lifetime is `with`; any thread may use it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="drill-links", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for link in self._links.values():
            self._do(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def port(self, name: str) -> int:
        """Return where `name` is to connect; its link is made if there is none."""
        if name not in self._links:
            link = Link(self._target)
            self._do(link.open())
            self._links[name] = link
        return self._links[name].port

    def cut(self, name: str) -> None:
        """See `Link.cut`."""
        self._do(self._links[name].cut())

    def stall(self, name: str) -> None:
        """See `Link.stall`."""
        self._do(self._links[name].stall())

    def restore(self, name: str) -> None:
        """See `Link.restore`."""
        self._do(self._links[name].restore())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, _R]) -> _R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)
