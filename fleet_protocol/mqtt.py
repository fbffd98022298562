"""MqttBus: the message bus on MQTT 5.

Written for programs that decide on everything that arrived in one turn of the loop, save, and
then tell: no task and no future per message. `mqtt_link` moves packets, `mqtt_outbox` and
`inbox` remember what is unfinished, `mqtt_handshake` speaks the first and last words.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Self

import mqtt5
import msgspec
import structlog

from fleet_protocol import mqtt_handshake as handshake
from fleet_protocol.backoff import Backoff
from fleet_protocol.bus import (
    BusEvent,
    Delivery,
    LinkDown,
    LinkUp,
    Publication,
    Session,
)
from fleet_protocol.errors import BusClosedError, FleetError, RejectedError, RetryableError
from fleet_protocol.inbox import Inbox, Receipts
from fleet_protocol.mqtt_filters import Filters
from fleet_protocol.mqtt_link import Link
from fleet_protocol.mqtt_outbox import Outbox, ServerLimits
from fleet_protocol.settings import BrokerSettings

_log = structlog.get_logger()
_MIB = 1_048_576


class BusLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Every bound of the bus; each queue says here how long it may grow.

    Attributes:
        connect_timeout_s: How long entering the bus tries before it gives up.
        handshake_timeout_s: How long one try may take, from the name look-up to the SUBACK.
        close_timeout_s: How long leaving waits for confirmations.
        reconnect_first_s: Upper bound of the first jittered wait after a loss; doubles.
        reconnect_cap_s: Upper bound of all of them.
        receive_maximum: QoS 1 deliveries the broker may send ahead of our acknowledgements.
        window: QoS 1 publications on their way at once, if the broker allows as many.
        max_unconfirmed: QoS 1 publications held, on their way or waiting; then BusFullError.
        max_unconfirmed_bytes: The same in payload bytes.
        max_packet_bytes: Largest packet we take or send; the broker discards larger ones for us.
        max_inbox_events: Events waiting for `receive` before the link is read no further.
        max_inbox_bytes: The same in payload bytes.
        silent_losses: Times in a row the broker may close the connection without a word within
            `silent_life_s` of taking us in, before we believe that another client has our id.
        silent_life_s: Well above the pauses in which two such clients put each other out so often,
            and below those in which a broker may be killed and started again.
        write_buffer_bytes: Unsent bytes beyond which QoS 0 is dropped and QoS 1 waits.
    """

    connect_timeout_s: float = 30.0
    handshake_timeout_s: float = 10.0
    close_timeout_s: float = 5.0
    reconnect_first_s: float = 0.25
    reconnect_cap_s: float = 30.0
    silent_losses: int = 6
    silent_life_s: float = 10.0
    receive_maximum: int = 4_000
    window: int = 1_000
    max_unconfirmed: int = 100_000
    max_unconfirmed_bytes: int = 64 * _MIB
    max_packet_bytes: int = 6 * _MIB
    max_inbox_events: int = 20_000
    max_inbox_bytes: int = 64 * _MIB
    write_buffer_bytes: int = 4 * _MIB


class MqttBus:
    """A `MessageBus` on one broker.

    Args:
        broker: Where it is.
        session: Who we are and what we want.
        password: Takes precedence over the settings'.
        limits: Bounds of time and memory.
        rng: Where the jitter of reconnects comes from.
        sleep: How a reconnect waits; tests make it short and write it down.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        session: Session,
        *,
        password: str | None = None,
        limits: BusLimits | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._broker = broker
        self._session = session
        self._password = password if password is not None else broker.secret
        self._limits = limits = limits or BusLimits()
        self._sleep = sleep
        self._backoff = Backoff(
            first_s=limits.reconnect_first_s, cap_s=limits.reconnect_cap_s, rng=rng
        )
        self._inbox = Inbox(max_events=limits.max_inbox_events, max_bytes=limits.max_inbox_bytes)
        self._receipts = Receipts()
        self._outbox = Outbox(
            self._send,
            self._inbox.put,
            max_messages=limits.max_unconfirmed,
            max_bytes=limits.max_unconfirmed_bytes,
        )
        self._filters = Filters(
            session.subscriptions,
            send=self._send,
            next_id=self._outbox.take_id,
            free_id=self._outbox.free_id,
            refused=self._drop_link,
        )
        self._now_s: Callable[[], float] = _loop_time
        self._link: Link | None = None
        self._is_up = False
        self._up_at_s = 0.0
        self._silent_losses = 0
        self._closed: BusClosedError | None = None
        self._answer: asyncio.Future[mqtt5.Packet] | None = None
        self._early: list[Delivery] = []
        self._lost = asyncio.Event()
        self._settled = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.dropped = 0
        """QoS 0 publications that were dropped because the link was down or congested."""

    def __repr__(self) -> str:
        state = "up" if self._is_up else "closed" if self._closed else "down"
        return (
            f"<MqttBus {self._session.client_id} at {self._broker.host}:{self._broker.port} "
            f"{state}, {len(self._outbox)} unconfirmed>"
        )

    # ---------------------------------------------------------------- the MessageBus

    async def __aenter__(self) -> Self:
        """Connect and subscribe.

        Raises:
            RejectedError: `not_authorized` (a wrong password), or the broker refused for another
                lasting reason.
            ConfigError: The TLS settings cannot work, or the broker's certificate is not trusted.
            RetryableError: `broker_unreachable` for `connect_timeout_s`.
        """
        self._now_s = asyncio.get_running_loop().time
        deadline_s = self._now_s() + self._limits.connect_timeout_s
        await self._connect_until(deadline_s)
        self._backoff.reset()
        self._keeper = asyncio.create_task(self._keep_connected(), name="mqtt-keep-connected")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Wait a bounded time for confirmations, say goodbye, stop."""
        try:
            if self._closed is None and len(self._outbox):
                self._settled.clear()
                async with asyncio.timeout(self._limits.close_timeout_s):
                    await self._settled.wait()
        except TimeoutError:
            _log.warning("bus.closed_with_unconfirmed", publications=len(self._outbox))
        finally:
            self._close(BusClosedError("the bus was closed"))
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.gather(self._keeper, return_exceptions=True)
            link, self._link, self._is_up = self._link, None, False
            if link is not None:
                await link.close(handshake.GOODBYE, timeout_s=1.0)

    async def receive(self) -> list[BusEvent]:
        """Wait for at least one event and return all there are; see `MessageBus`."""
        events = await self._inbox.take()
        if self._link is not None:
            self._link.resume_reading()
        return events

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Release deliveries; the broker hears of each once all before it are released too."""
        acks = self._receipts.settle(deliveries)
        if acks:
            self._send(b"".join([mqtt5.PubAckPacket(packet_id).write() for packet_id in acks]))

    def publish(self, publication: Publication) -> None:
        """Queue a message; see `MessageBus`.

        Raises:
            BusFullError: Too much is unconfirmed; nothing was queued.
            BusClosedError: The bus is closed.
        """
        if self._closed is not None:
            raise self._closed
        is_congested = self._link is not None and self._link.is_congested
        if publication.qos:
            self._outbox.send_surely(publication, now_s=self._now_s(), hold=is_congested)
        elif is_congested or not self._outbox.send_once(publication):
            self.dropped += 1

    def subscribe(self, filters: Iterable[str]) -> None:
        """Hear these, too; see `MessageBus`."""
        self._filters.add(filters)

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Hear these no longer."""
        self._filters.remove(filters)

    @property
    def is_connected(self) -> bool:
        """Whether we are connected and subscribed."""
        return self._is_up

    # ---------------------------------------------------------------- called by the link

    def packets_arrived(self, packets: list[mqtt5.Packet]) -> None:
        """Turn packets into events; see `LinkListener`."""
        deliveries: list[Delivery] = []
        size_bytes = 0
        outbox, issue = self._outbox, self._receipts.issue
        for packet in packets:
            if isinstance(packet, mqtt5.PublishPacket):
                payload, packet_id = packet.payload, packet.packet_id
                size_bytes += len(payload)
                deliveries.append(
                    Delivery(
                        topic=packet.topic,
                        payload=payload,
                        retain=packet.retain,
                        receipt=None if packet_id is None else issue(packet_id),
                        response_topic=packet.response_topic,
                        correlation_data=packet.correlation_data,
                    )
                )
            elif isinstance(packet, mqtt5.PubAckPacket):
                outbox.confirm(packet)
            else:
                self._take_control(packet)
        if not self._is_up:
            self._early += deliveries
        elif deliveries:
            self._inbox.put_all(deliveries, size_bytes=size_bytes)
            if self._inbox.is_full and self._link is not None:
                self._link.pause_reading()
        self.link_writable()

    def link_writable(self) -> None:
        """Send what waits for the window; see `LinkListener`."""
        if len(self._outbox) == 0:
            self._settled.set()
        elif self._link is not None and not self._link.is_congested:
            self._outbox.send_waiting(self._now_s())

    def link_lost(self, reason: str, *, is_silent: bool) -> None:
        """Take everything back and let the keeper reconnect; see `LinkListener`."""
        was_up, self._is_up = self._is_up, False
        # A broker that takes us in and puts us out at once must not be hammered.
        lived_s = asyncio.get_running_loop().time() - self._up_at_s
        if was_up and lived_s >= self._limits.reconnect_cap_s:
            self._backoff.reset()
        if was_up and lived_s >= self._limits.silent_life_s:
            self._silent_losses = 0
        self._silent_losses = self._silent_losses + 1 if is_silent else 0
        self._link = None
        self._outbox.close()
        self._filters.close()
        self._receipts.forget_all()
        self._early.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(reason))
        if was_up:
            _log.warning("link.down", reason=reason, unconfirmed=len(self._outbox))
            self._inbox.put(LinkDown(reason))
            self._lost.set()

    # ---------------------------------------------------------------- inside

    def _send(self, data: bytes) -> None:
        if self._link is not None:
            self._link.send(data)

    def _take_control(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.DisconnectPacket):
            self._drop_link(handshake.judge_disconnect(packet, self._session.client_id))
        elif isinstance(packet, mqtt5.ConnAckPacket | mqtt5.SubAckPacket):
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(packet)
            elif isinstance(packet, mqtt5.SubAckPacket):
                self._filters.answered(packet)
        elif isinstance(packet, mqtt5.UnsubAckPacket):
            self._filters.answered(packet)
        elif self._link is not None and not isinstance(packet, mqtt5.PingRespPacket):
            self._link.abort(f"the broker sent an unexpected {type(packet).__name__}")

    def _drop_link(self, verdict: BusClosedError | str) -> None:
        """End the connection, and the bus where the verdict is an error."""
        if isinstance(verdict, BusClosedError):
            self._close(verdict)
        if self._link is not None:
            self._link.abort(str(verdict))

    def _close(self, error: BusClosedError) -> None:
        if self._closed is None and error.code != "bus_closed":
            _log.error("bus.closed", code=error.code, reason=str(error), hint=error.hint)
        self._closed = self._closed or error
        self._inbox.close(self._closed)
        self._lost.set()

    async def _keep_connected(self) -> None:
        """Reconnect whenever the link is lost, until the bus is closed."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            if self._closed is not None:
                return
            if self._silent_losses >= self._limits.silent_losses:
                self._close(
                    handshake.suspect_take_over(self._session.client_id, self._silent_losses)
                )
                return
            try:
                await self._connect_until(None)
            except RejectedError as error:
                self._close(BusClosedError(str(error), code=error.code, hint=error.hint))
                return

    async def _connect_until(self, deadline_s: float | None) -> None:
        """Try until connected; None: for ever, and what a restart of the broker can heal, too."""
        loop = asyncio.get_running_loop()
        is_first = deadline_s is not None
        wait_s = 0.0 if is_first else self._backoff.next_s()
        while True:
            await self._sleep(wait_s)
            try:
                return await self._connect()
            except RejectedError:
                raise
            except FleetError as error:
                self._silent_losses = 0
                if is_first and not isinstance(error, RetryableError):
                    raise
                wait_s = self._backoff.next_s()
                _log.info("link.retry", reason=str(error), wait_s=round(wait_s, 2))
                if deadline_s is not None and loop.time() + wait_s >= deadline_s:
                    raise handshake.unreachable(self._broker, error) from error

    async def _connect(self) -> None:
        """Make one try: dial, CONNECT, SUBSCRIBE, and only then let events through.

        Raises:
            FleetError: RetryableError or ConfigError where a later try may work, RejectedError
                where none will.
        """
        loop = asyncio.get_running_loop()
        link: Link | None = None
        try:
            async with asyncio.timeout(self._limits.handshake_timeout_s):
                link = self._link = await self._dial()
                hello = handshake.connect(
                    self._session,
                    user=self._broker.user,
                    password=self._password,
                    keepalive_s=self._broker.keepalive_s,
                    receive_maximum=self._limits.receive_maximum,
                    max_packet_bytes=self._limits.max_packet_bytes,
                )
                connack = handshake.judge_connack(await self._ask(link, hello))
                if filters := self._filters.all(kept=connack.session_present):
                    answer = await self._ask(link, handshake.subscribe(filters))
                    handshake.judge_suback(answer, filters)
        except TimeoutError as error:
            raise RetryableError("the broker did not answer in time") from error
        except OSError as error:
            raise handshake.explain(error, self._broker) from error
        else:
            self._come_up(link, connack, now_s=loop.time())
        finally:
            if not self._is_up:
                self._give_up(link)

    async def _dial(self) -> Link:
        loop = asyncio.get_running_loop()
        context = handshake.tls_context(self._broker)
        _, link = await loop.create_connection(
            lambda: Link(
                self,
                keepalive_s=self._broker.keepalive_s,
                max_packet_bytes=self._limits.max_packet_bytes,
                write_buffer_bytes=self._limits.write_buffer_bytes,
            ),
            self._broker.host,
            self._broker.port,
            ssl=context,
            server_hostname=self._broker.host if context else None,
        )
        return link

    async def _ask(self, link: Link, data: bytes) -> mqtt5.Packet:
        """Send a packet of the handshake and wait for the broker's answer to it."""
        self._answer = asyncio.get_running_loop().create_future()
        link.send(data)
        try:
            return await self._answer
        finally:
            self._answer = None

    def _come_up(self, link: Link, connack: mqtt5.ConnAckPacket, *, now_s: float) -> None:
        self._is_up = True
        self._up_at_s = now_s
        if self._session.expiry_s and not connack.session_present:
            # Whoever takes our place takes our session, too: this broker began anew.
            self._silent_losses = 0
        if connack.server_keep_alive:
            link.keepalive_s = connack.server_keep_alive
        _log.info("link.up", broker=self._broker.place, session_present=connack.session_present)
        self._inbox.put(LinkUp(connack.session_present))
        early, self._early = self._early, []
        self._inbox.put_all(early, size_bytes=sum(len(item.payload) for item in early))
        allowed = ServerLimits(
            window=min(connack.receive_max, self._limits.window),
            max_packet_bytes=min(
                connack.max_packet_size or self._limits.max_packet_bytes,
                self._limits.max_packet_bytes,
            ),
            properties=handshake.carries_properties(connack),
        )
        self._filters.open()  # Before whatever makes others speak to us.
        self._outbox.open(allowed, session_present=connack.session_present, now_s=now_s)

    def _give_up(self, link: Link | None) -> None:
        """Leave nothing of a failed try behind."""
        self._link = None
        self._receipts.forget_all()
        self._early.clear()
        if link is not None:
            link.discard()


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
