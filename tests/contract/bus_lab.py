"""One bench for every bus: the same cuts, restarts and hold-ups, in memory and on real brokers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

import msgspec

from fleet_cli.broker import BrokerProcess
from fleet_protocol.bus import BusEvent, Confirmed, Delivery, LinkDown, LinkUp, MessageBus, Session
from fleet_protocol.memory import MemoryBroker, MemoryBus
from fleet_protocol.mqtt import BusLimits, MqttBus
from fleet_protocol.settings import BrokerSettings

PATIENCE_S = 15.0
QUICK = BusLimits(reconnect_first_s=0.02, reconnect_cap_s=0.2, connect_timeout_s=10.0)


class Lab(Protocol):
    """What the contract needs of a broker to try a bus on it."""

    def bus(self, session: Session, *, max_unconfirmed: int = 1_000) -> MessageBus:
        """Return a bus of this client, not entered."""
        ...

    def cut(self, client_id: str) -> None:
        """Pull the client's cable."""
        ...

    def heal(self, client_id: str) -> None:
        """Put it back."""
        ...

    async def let_expire(self, span_ms: int) -> None:
        """Let this much of the broker's time pass."""
        ...

    async def aclose(self) -> None:
        """Stop what was started."""
        ...


class MemoryLab:
    """The bus without a network."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(seed=1)

    def bus(self, session: Session, *, max_unconfirmed: int = 1_000) -> MemoryBus:
        return MemoryBus(self.broker, session, max_unconfirmed=max_unconfirmed)

    def cut(self, client_id: str) -> None:
        self.broker.cut(client_id)

    def heal(self, client_id: str) -> None:
        self.broker.heal(client_id)

    async def let_expire(self, span_ms: int) -> None:
        self.broker.advance(span_ms)

    async def aclose(self) -> None:
        pass


class MqttLab:
    """A real broker, each client behind a cable of its own."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self._cables: dict[str, Cable] = {}

    def bus(
        self,
        session: Session,
        *,
        max_unconfirmed: int = 1_000,
        limits: BusLimits = QUICK,
        keepalive_s: int = 30,
    ) -> MqttBus:
        settings = BrokerSettings(
            url=f"mqtt://127.0.0.1:{self.cable(session.client_id).port}", keepalive_s=keepalive_s
        )
        limits = msgspec.structs.replace(limits, max_unconfirmed=max_unconfirmed)
        return MqttBus(settings, session, limits=limits)

    def cable(self, client_id: str) -> Cable:
        if client_id not in self._cables:
            self._cables[client_id] = Cable(self.broker.port)
        return self._cables[client_id]

    def cut(self, client_id: str) -> None:
        self.cable(client_id).cut()

    def heal(self, client_id: str) -> None:
        self.cable(client_id).heal()

    async def let_expire(self, span_ms: int) -> None:
        # The broker's clock is the real one: there is nothing to wait for but time itself.
        await asyncio.sleep(span_ms / 1_000)

    async def aclose(self) -> None:
        for cable in self._cables.values():
            await cable.aclose()


class Cable:
    """A TCP proxy on loopback that can be cut, or swallow what goes through it.

    Attributes:
        swallows: Both ends think the link is there, but nothing comes through any more.
        takes: While cleared, nothing more is taken from either end: what is between fills up.
        connections: How many there were.
    """

    def __init__(self, target_port: int) -> None:
        self.swallows = False
        self.takes = asyncio.Event()
        self.takes.set()
        self.connections = 0
        self._target_port = target_port
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._starting = asyncio.create_task(
            asyncio.start_server(self._carry, sock=self._listener), name="cable"
        )

    def cut(self) -> None:
        """Break all connections and take no new ones."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Carry again."""
        self._is_cut = False
        self.swallows = False
        self.takes.set()

    async def aclose(self) -> None:
        """Take it away."""
        self.cut()
        self.takes.set()
        server = await self._starting
        server.close()
        await server.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._is_cut:
                return
            self.connections += 1
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(far_writer)
            try:
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self.takes.wait()
            if not self.swallows:
                sink.write(data)
                await sink.drain()
        sink.close()


def confirmed(token: object, events: list[BusEvent]) -> bool:
    """Whether the broker confirmed this publication, heard by somebody or by nobody."""
    return any(isinstance(event, Confirmed) and event.token == token for event in events)


class Reader:
    """Collects what a bus receives until a test has what it waits for.

    Args:
        bus: Where from.
        acknowledges: At once, as is needed beyond the 100 that iotcore sends ahead.
    """

    def __init__(self, bus: MessageBus, *, acknowledges: bool = False) -> None:
        self.bus = bus
        self._acknowledges = acknowledges
        self.events: list[BusEvent] = []

    async def until(self, is_enough: Callable[[list[BusEvent]], bool]) -> list[BusEvent]:
        """Receive until the events since the last call are enough; return and forget them."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_enough(self.events):
                events = await self.bus.receive()
                self.events += events
                if self._acknowledges:
                    self.bus.acknowledge(messages(events))
        events, self.events = self.events, []
        return events

    async def deliveries(self, count: int) -> list[Delivery]:
        """Receive until so many messages came; more than asked for fails."""
        found = messages(await self.until(lambda events: len(messages(events)) >= count))
        assert len(found) == count, [item.topic for item in found]
        return found

    async def up(self) -> LinkUp:
        """Wait for the link."""
        events = await self.until(lambda got: any(isinstance(item, LinkUp) for item in got))
        at = next(i for i, item in enumerate(events) if isinstance(item, LinkUp))
        self.events = events[at + 1 :] + self.events
        found = events[at]
        assert isinstance(found, LinkUp)
        return found

    async def down(self) -> LinkDown:
        """Wait for its loss."""
        events = await self.until(lambda got: any(isinstance(item, LinkDown) for item in got))
        at = next(i for i, item in enumerate(events) if isinstance(item, LinkDown))
        self.events = events[at + 1 :] + self.events
        found = events[at]
        assert isinstance(found, LinkDown)
        return found


def messages(events: list[BusEvent]) -> list[Delivery]:
    """Return the deliveries among events."""
    return [event for event in events if isinstance(event, Delivery)]


def settings_of(broker: BrokerProcess) -> BrokerSettings:
    """Return how to reach a broker without a cable between."""
    return BrokerSettings(url=broker.url)
