"""A dispatcher in one process, made of the shipped fakes, with a hand-held clock and its peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from cloud_dispatcher.adapters.scripted_provider import ScriptedProvider
from cloud_dispatcher.adapters.store_memory import MemoryJobStore
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.offline import no_library
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import Payer
from cloud_dispatcher.home_assistant import HomeAssistantSettings
from cloud_dispatcher.housekeeping import HousekeepingSettings
from cloud_dispatcher.observers import JobLog
from cloud_dispatcher.outside import Outside
from cloud_dispatcher.ports import AlertArchive, AnswerLibrary, CompletionProvider, Observer
from cloud_dispatcher.presence import session_of
from cloud_dispatcher.service import DispatcherService
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.access import Identity
from fleet_protocol.bus import BusEvent, Delivery, Publication, Session
from fleet_protocol.memory import MemoryBroker, MemoryBus

TOPICS = t.Topics()
PATIENCE_S = 20.0

_M = TypeVar("_M", bound=m.Message)
_P = TypeVar("_P", bound="Peer")


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Peer:
    """A device, worker or admin: publishes, and remembers what it heard."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.heard: list[Delivery] = []

    def say(self, channel: t.Channel, message: m.Message, *ids: str) -> None:
        self.throw(TOPICS.name(channel, *ids), codec.encode(message), retain=channel.retain)

    def throw(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
    ) -> None:
        self.bus.publish(
            Publication(
                topic=topic,
                payload=payload,
                retain=retain,
                response_topic=response_topic,
                correlation_data=correlation_data,
            )
        )

    async def hear(self, channel: t.Channel, *ids: str, after: int = 0) -> Delivery:
        """Wait for the (after + 1)-th message there."""
        topic = TOPICS.name(channel, *ids)
        return await self.hear_on(topic, after=after)

    async def hear_on(self, topic: str, *, after: int = 0) -> Delivery:
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [d for d in self.heard if d.topic == topic]) <= after:
                await self.listen()
        return found[after]

    def unheard(self) -> list[str]:
        """Topics of what came and was not listened to yet."""
        return [e.topic for e in self.bus._inbox._events if isinstance(e, Delivery)]

    async def listen(self) -> None:
        events: list[BusEvent] = await self.bus.receive()
        deliveries = [event for event in events if isinstance(event, Delivery)]
        self.bus.acknowledge(deliveries)
        self.heard += deliveries

    async def read(self, kind: type[_M], channel: t.Channel, *ids: str, after: int = 0) -> _M:
        return codec.decode_as(kind, (await self.hear(channel, *ids, after=after)).payload)

    async def until(self, kind: type[_M], channel: t.Channel, met: Callable[[_M], bool]) -> _M:
        """Wait for a message there that says so."""
        after = 0
        while not met(found := await self.read(kind, channel, after=after)):
            after += 1
        return found

    async def ack(self, job: str, *, after: int = 0) -> m.JobAck:
        return await self.read(m.JobAck, t.ACK, "d1", job, after=after)

    async def result(self, job: str, *, after: int = 0) -> m.JobResult:
        return await self.read(m.JobResult, t.RESULT, "d1", job, after=after)


class Worker(Peer):
    """A board with two slots."""

    def join(self, *, slots: int = 2) -> None:
        models = (m.ModelInfo(name="tiny", version="1", context_tokens=512),)
        self.say(t.INFO, m.WorkerInfo(boot="b1", slots=slots, models=models), "w1")
        self.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b1"), "w1")

    async def assignment(self, *, after: int = 0) -> m.Assignment:
        return await self.read(m.Assignment, t.ASSIGN, "w1", after=after)

    async def until_settled(self, got: m.Assignment) -> None:
        """Wait until the dispatcher has stored what became of an assignment."""
        ref, after = m.AttemptRef(job=got.job, attempt=got.attempt), 0
        while ref not in (await self.read(m.Settled, t.SETTLED, "w1", after=after)).jobs:
            after += 1

    def done(self, got: m.Assignment, text: str = "It is so.") -> None:
        answer = m.LocalAnswer(text=text, model="tiny", confidence=0.9)
        self.say(t.DONE, m.JobDone(attempt=got.attempt, answer=answer), "w1", got.job)


class House:
    """Everything a dispatcher needs, over any number of its lives."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(seed=1)
        self.store = MemoryJobStore()
        self.provider: CompletionProvider = ScriptedProvider()
        self.library: AnswerLibrary | None = None
        self.memory_pct: float | None = None
        self.settings = EngineSettings()
        self.clock = Clock()
        self.lives = 0
        self.max_unconfirmed = 10_000
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.alerts: AlertArchive | None = None
        self.home_assistant = HomeAssistantSettings()
        self.observers: tuple[Observer, ...] = ()
        self.payers: Callable[[], Sequence[tuple[m.DeviceId, Payer]]] = tuple
        self.inquired: Callable[[Identity, m.AdminRequest, str], None] = lambda *_: None

    def build(self, **settings: object) -> DispatcherService:
        self.lives += 1
        epoch = f"epoch-{self.lives}"
        session = session_of(TOPICS, epoch, client_id="dispatcher", expiry_s=86_400)
        outside = Outside(
            bus=MemoryBus(self.broker, session, max_unconfirmed=self.max_unconfirmed),
            store=self.store,
            provider=self.provider,
            clock=self.clock,
            topics=TOPICS,
            epoch=epoch,
            observers=(JobLog(), *self.observers),
            library=self.library,
            memory=lambda: self.memory_pct,
            payers=self.payers,
            inquired=self.inquired,
            alerts=self.alerts,
            home_assistant=self.home_assistant,
        )
        offline = no_library if self.library is None else self.library.answer
        engine = Engine(self.settings, epoch, offline=offline)
        return DispatcherService(engine, outside, msgspec.convert(settings, HousekeepingSettings))

    @asynccontextmanager
    async def dispatcher(self, **settings: object) -> AsyncIterator[DispatcherService]:
        """Run one from here to the end of the block, then stop it as SIGTERM does."""
        service = self.build(**settings)
        task = await self.start(service)
        try:
            yield service
        finally:
            service.stop()
            async with asyncio.timeout(PATIENCE_S):
                await task

    async def start(self, service: DispatcherService) -> asyncio.Task[None]:
        """Run it, and wait until it is there for everybody."""
        async with self.peer(Peer, f"watch-{self.lives}", "fleet") as watcher:
            task = asyncio.create_task(service.run(), name="dispatcher")
            heard = 0
            while True:
                presence = await watcher.read(m.DispatcherPresence, t.DISPATCHER, after=heard)
                if presence.epoch == f"epoch-{self.lives}":
                    return task
                heard += 1

    @asynccontextmanager
    async def peer(
        self, kind: Callable[[MemoryBus], _P], name: str, root: str
    ) -> AsyncIterator[_P]:
        """Connect a peer that hears everything below `root`."""
        session = Session(client_id=name, subscriptions=(f"{TOPICS.root}/{root}/#",))
        async with MemoryBus(self.broker, session) as bus:
            yield kind(bus)

    async def until(self, met: Callable[[], bool]) -> None:
        """Let everybody have their turns until it is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not met():  # noqa: ASYNC110 - a store has no event to wait for
                await asyncio.sleep(0)

    async def kill(self, task: asyncio.Task[None]) -> None:
        """End it as kill -9 does: no goodbye, the will is published."""
        self.broker.cut("dispatcher")
        self.broker.leave("dispatcher")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def unacknowledged(self) -> int:
        """Deliveries that the broker would repeat to the dispatcher."""
        return len(self.broker._clients["dispatcher"].owed)


QUESTION = m.JobSubmit(prompt="Is the hall warm?")
