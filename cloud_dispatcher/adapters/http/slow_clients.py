"""Connections that take their time: uvicorn's protocols, with an end to what they wait for.

uvicorn itself waits for ever for a request that comes byte by byte, and for a client that does not
read. What is here costs a timer a connection; what a body may take is the gatekeeper's business.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_WAIT_S: Final = 10.0
"""For a request's head, from the connection or from its first byte."""
READ_WAIT_S: Final = 60.0
"""For a client to read what lies ready for it: 48 KiB, with asyncio's limits."""
_SPARED_FILES: Final = 256
"""What the dispatcher needs besides: its store, the broker, the cloud."""
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)


def most_connections(wanted: int) -> int:
    """Return how many there may be: as many as wanted, or as the system has files left for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - _SPARED_FILES))


class _Stalling(asyncio.Protocol):
    """Ends a connection whose client does not read."""

    transport: asyncio.Transport
    _stalled: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._leave_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        loop = asyncio.get_running_loop()
        self._stalled = loop.call_later(READ_WAIT_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._leave_reader()
        super().resume_writing()

    def _leave_reader(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class PatientHttp(_Stalling, H11Protocol):
    """HTTP/1.1 whose clients have a time for what they send and for what they read.

    Attributes:
        most: Connections at once; further ones are told to come again.
    """

    most: int = 1_000_000
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, but not for ever."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_FULL)
            transport.close()
            return
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Go on waiting while there is nothing to be answered."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        is_ours = self.transport.get_protocol() is self  # else it is a WebSocket by now
        # Answered already: what still comes is the rest of a body that nobody wants.
        if is_ours and (self.cycle is None or self.cycle.response_complete):
            self._expect()
        else:
            self._expect_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._expect_no_more()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_WAIT_S, self.transport.abort)

    def _expect_no_more(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class PatientWebSocket(_Stalling, WebSocketsSansIOProtocol):
    """WebSocket whose clients have a time for what they read; uvicorn's pings see to the rest."""
