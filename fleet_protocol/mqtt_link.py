"""One TCP or TLS connection: bytes to MQTT 5 packets and back, nothing of what they mean.

A whole socket read becomes one list of packets, and everything written in one turn of the loop
leaves in one system call: that, more than anything else, is what makes the bus fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, Protocol, cast

import mqtt5

from fleet_protocol.errors import ProtocolError

# Shares of the keepalive. The sum of the last two stays below the 1.5 that MQTT allows.
_PING_AFTER: Final = 0.5
_DEAD_AFTER: Final = 1.25
_CHECK_EVERY: Final = 0.125

_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)
_SILENCE: Final = "the broker closed the connection without a word"
_PING: Final = mqtt5.PingReqPacket().write()


class LinkListener(Protocol):
    """Who is told what happens on a link. Every call comes from the event loop."""

    def packets_arrived(self, packets: list[mqtt5.Packet]) -> None:
        """Take what one socket read brought, in order."""
        ...

    def link_lost(self, reason: str, *, is_silent: bool) -> None:
        """Take note that the connection is gone; nothing more comes from it.

        Args:
            reason: For people.
            is_silent: The broker closed it without saying why.
        """
        ...

    def link_writable(self) -> None:
        """Go on sending after `Link.is_congested` was true."""
        ...


class Link(asyncio.Protocol):
    """A connection, from its first byte to its last.

    Args:
        listener: Told of packets and of the end.
        keepalive_s: Silence after which the link counts as dead is 1.25 times this, checked often
            enough to notice before 1.5 times.
        max_packet_bytes: A larger incoming packet ends the connection.
        write_buffer_bytes: Unsent bytes beyond which the link calls itself congested.
    """

    def __init__(
        self,
        listener: LinkListener,
        *,
        keepalive_s: float,
        max_packet_bytes: int,
        write_buffer_bytes: int,
    ) -> None:
        self.keepalive_s = keepalive_s
        self.is_congested = False
        self._listener: LinkListener | None = listener
        self._max_packet_bytes = max_packet_bytes
        self._write_buffer_bytes = write_buffer_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._rest = bytearray()
        self._unsent: list[bytes] = []
        self._reason = _SILENCE
        self._received_at_s = self._sent_at_s = self._loop.time()
        self._is_paused = False
        self._is_closing = False
        self._watch: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()

    # ---------------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn Nagle off and start to watch for silence."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._write_buffer_bytes)
        self._socket = self._transport.get_extra_info("socket")
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch_for_silence()

    def data_received(self, data: bytes) -> None:
        """Cut what came into packets and hand them over together."""
        if self._listener is None:
            return
        self._received_at_s = self._loop.time()
        self._ack_quickly()
        packets: list[mqtt5.Packet] = []
        try:
            self._cut(data, packets)
        except (ValueError, ProtocolError) as error:
            self.abort(f"the broker sent what is not MQTT 5: {error}")
        # Those before a bad one still count: they may say why it went bad.
        if packets:
            self._listener.packets_arrived(packets)

    def eof_received(self) -> bool:
        """Let the transport close itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the listener, once."""
        if exc is not None:
            self._reason = str(exc) or type(exc).__name__
        if not self._closed.done():
            self._closed.set_result(None)
        self._tell_lost()

    def pause_writing(self) -> None:
        """The broker takes less than we send."""
        self.is_congested = True

    def resume_writing(self) -> None:
        """It caught up."""
        self.is_congested = False
        if self._listener is not None:
            self._listener.link_writable()

    # ---------------------------------------------------------------- called by the bus

    def send(self, data: bytes) -> None:
        """Queue the bytes of whole packets; they leave at the end of this turn of the loop."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def pause_reading(self) -> None:
        """Let the broker wait; TCP tells it."""
        if self._transport is not None and not self._is_paused and not self._is_closing:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take more."""
        if self._transport is not None and self._is_paused and not self._is_closing:
            self._is_paused = False
            self._received_at_s = self._loop.time()
            self._transport.resume_reading()

    def abort(self, reason: str) -> None:
        """Drop the connection now, without a goodbye: the broker publishes our will."""
        self._is_closing = True
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def discard(self) -> None:
        """Abort, and tell the listener nothing."""
        self._listener = None
        self._stop_watching()
        self.abort("given up")

    async def close(self, goodbye: bytes, *, timeout_s: float) -> None:
        """Send `goodbye` last and let the broker close; the listener hears nothing.

        Closing ourselves at once would race with it: iotcore then often publishes our will.
        """
        self._listener = None
        self._stop_watching()
        self.send(goodbye)
        self._flush()
        if self._transport is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._closed), timeout_s)
            except TimeoutError:
                self._transport.abort()

    # ---------------------------------------------------------------- inside

    def _cut(self, data: bytes, packets: list[mqtt5.Packet]) -> None:
        """Append every whole packet of `data` to `packets` and keep the rest."""
        rest = self._rest
        if rest:
            rest += data
        source = rest or data
        taken, read = 0, mqtt5.read
        with memoryview(source) as view:
            try:
                while True:
                    packet, size = read(view[taken:])
                    taken += size
                    packets.append(packet)
            except IndexError:
                pass  # the codec's word for: the packet is not all here yet
        if source is rest:
            del rest[:taken]
        else:
            rest += data[taken:]
        if len(rest) > self._max_packet_bytes:
            raise ProtocolError(f"a packet beyond {self._max_packet_bytes} bytes")

    def _ack_quickly(self) -> None:
        """Ask the kernel to acknowledge this read at once; it forgets the wish after each one.

        A broker that leaves Nagle on (iotcore) otherwise waits 40 ms for our delayed ACK.
        """
        if _QUICKACK is not None and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _flush(self) -> None:
        if self._unsent and self._transport is not None and not self._is_closing:
            self._sent_at_s = self._loop.time()
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _watch_for_silence(self) -> None:
        now_s = self._loop.time()
        quiet_s = now_s - self._received_at_s
        if quiet_s > _DEAD_AFTER * self.keepalive_s and not self._is_paused:
            self.abort(f"nothing heard from the broker for {quiet_s:.1f} s")
            return
        if max(quiet_s, now_s - self._sent_at_s) >= _PING_AFTER * self.keepalive_s:
            self.send(_PING)
        self._watch = self._loop.call_later(
            _CHECK_EVERY * self.keepalive_s, self._watch_for_silence
        )

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _tell_lost(self) -> None:
        self._stop_watching()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.link_lost(self._reason, is_silent=self._reason is _SILENCE)
