"""The loop: what arrived in one turn is decided, saved in one transaction, acknowledged, told."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core.session import Session
from edge_worker.ports import Host, ReloadError, Spool, SpoolUnavailableError, StrangerError
from edge_worker.service.bandwidth import BandwidthMeter
from edge_worker.service.intake import Intake
from edge_worker.service.renewing import CertificateKeeper
from edge_worker.service.runner import EngineRunner
from edge_worker.service.turn import Turn
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.bus import (
    BusEvent,
    Confirmed,
    Delivery,
    LinkDown,
    LinkUp,
    MessageBus,
    Publication,
    Refused,
)
from fleet_protocol.codec import CONTENT_TYPE_JSON, encode
from fleet_protocol.errors import BusClosedError, BusFullError

TURN_EVENTS: Final = 2_000
"""Most events decided on before they are saved; what is beyond waits for the next turn."""
BACKLOG_MOST: Final = 20_000
"""Events waiting here until the bus is read no further; it then holds the broker back."""
UNSENT_MOST: Final = 10_000
"""Messages that the full bus did not take yet. What is beyond is dropped, for it will be said
again; but not what is retained."""
RETRY_FIRST_MS: Final = 500
RETRY_MOST_MS: Final = 10_000

_log = structlog.get_logger()


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often what happens by the clock happens.

    Attributes:
        tick_s: Between two looks at deadlines, leases and repeats.
        heartbeat_s: Between two states, give or take a fifth.
        probe_timeout_s: How long an echo of a bandwidth probe is waited for.
    """

    tick_s: float = 0.25
    heartbeat_s: float = 5.0
    probe_timeout_s: float = 5.0


class ServiceParts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is made of.

    Attributes:
        spool: Not open yet.
        now_ms: UTC epoch milliseconds; must never go back.
        keeper: Looks after the certificate; None where the broker asks for none.
        alive: Called after each turn: a service manager watches that they go on.
        rng: Where the jitter of heartbeats comes from.
    """

    worker: m.WorkerId
    session: Session
    bus: MessageBus
    spool: Spool
    runner: EngineRunner
    host: Host
    topics: t.Topics
    now_ms: Callable[[], int]
    rng: random.Random
    keeper: CertificateKeeper | None = None
    alive: Callable[[], None] = lambda: None
    pace: Pace = msgspec.field(default_factory=Pace)


class WorkerService:
    """Runs a worker on an entered bus until it is drained or the bus is closed for good."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        self._session = parts.session
        self._meter = BandwidthMeter(self._probe, timeout_s=parts.pace.probe_timeout_s)
        self.intake = Intake(
            parts.topics,
            parts.worker,
            on_echo=self._meter.heard,
            on_certificate=self._hear_certificate,
        )
        self._inbox: deque[BusEvent | e.AnyEvent] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._turn = turn = Turn()
        self._group: asyncio.TaskGroup | None = None
        # By type and not by a chain of questions: each event and command of each job passes here.
        self._readers: dict[type, Callable[[Any], e.AnyEvent | None]] = {
            Delivery: self._read_delivery,
            LinkUp: lambda _: e.LinkRestored(),
            LinkDown: lambda _: e.LinkLost(),
            Refused: self._note_refusal,
            Confirmed: self._note_confirmation,
        }
        self._carriers: dict[type, Callable[[Any], None]] = {
            c.KeepJob: turn.add_keep,
            c.ForgetJob: turn.add_forget,
            c.KeepAnswer: turn.add_answer,
            c.ForgetAnswers: turn.add_clearing,
            c.Send: turn.add_send,
            c.EncodePrompt: parts.runner.order,
            c.StartGeneration: parts.runner.order,
            c.StopGeneration: parts.runner.order,
            c.LimitSlots: parts.runner.order,
            c.MeasureSpeed: parts.runner.order,
            c.MeasureBandwidth: self._start_measuring,
            c.StopWorker: self._end,
        }
        self._unsent: deque[Publication] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="edge-spool")
        self._retry_ms = 0
        self._retry_at_ms = 0
        # Deletions are not worth a transaction of their own: they wait for one, or for the clock.
        self._is_tidying = False
        self._is_over = self._starts_again = False
        self._is_known = False
        self._failure: BusClosedError | None = None
        self._measuring: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"WorkerService({self._session!r}, waiting={len(self._inbox)})"

    def request_stop(self) -> None:
        """Drain, then let `run` return. From the loop's own thread, e.g. a signal handler."""
        self._put([e.StopRequested()])

    async def run(self) -> None:
        """Open the spool, recover, work.

        Raises:
            SpoolUnavailableError: The spool cannot be opened.
            BusClosedError: The broker closed us for good, e.g. `session_taken_over`.
            StrangerError: It never let us speak as this worker.
            ReloadError: The worker is to be started again.
        """
        parts = self._parts
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, parts.spool.open)
        try:
            spooled = await loop.run_in_executor(self._executor, parts.spool.load)
            answers = await loop.run_in_executor(self._executor, parts.spool.load_answers)
            self._carry_out(self._session.recover(spooled, parts.now_ms(), answers=answers))
            await self._save_and_tell()  # Before the engine has a chance to take us down.
            async with asyncio.TaskGroup() as group:
                self._group = group
                tasks = self._start(group)
                await self._work()
                for task in tasks:
                    task.cancel()
        finally:
            self._say_goodbye()
            await loop.run_in_executor(self._executor, parts.spool.close)
            self._executor.shutdown()
        if self._failure is not None:
            raise self._failure
        if self._starts_again:
            raise ReloadError

    def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        keeper, bus = self._parts.keeper, self._parts.bus
        looking = (
            []
            if keeper is None
            else [keeper.run(self._ask_certificate, is_connected=lambda: bus.is_connected)]
        )
        return [
            *(group.create_task(one, name="worker-certificate") for one in looking),
            group.create_task(self._read_bus(), name="worker-read-bus"),
            group.create_task(self._parts.runner.run(self._put), name="worker-engine"),
            group.create_task(self._tick(), name="worker-clock"),
            group.create_task(self._beat(), name="worker-heartbeat"),
        ]

    # ------------------------------------------------------------ the loop

    async def _work(self) -> None:
        while not self._is_over and self._failure is None:
            await self._wake.wait()
            self._wake.clear()
            while self._inbox:
                self._decide()
                await self._save_and_tell()
                self._parts.alive()
            await self._save_and_tell()
        if self._measuring is not None:
            self._measuring.cancel()

    def _decide(self) -> None:
        """Feed the session one turn's events; all of one turn happen at one instant."""
        now_ms = self._parts.now_ms()
        inbox, readers, handle = self._inbox, self._readers, self._session.handle
        for _ in range(min(len(inbox), TURN_EVENTS)):
            item: Any = inbox.popleft()
            reader = readers.get(type(item))
            event = item if reader is None else reader(item)
            if event is not None:
                self._carry_out(handle(event, now_ms))
        if len(self._inbox) < BACKLOG_MOST:
            self._room.set()

    def _read_delivery(self, delivery: Delivery) -> e.AnyEvent | None:
        self._turn.deliveries.append(delivery)
        return self.intake.read(delivery)

    def _note_refusal(self, refused: Refused) -> None:
        _log.error("publication.refused", code=refused.code, topic=refused.topic)
        if refused.token is not None and refused.code == "not_authorized" and not self._is_known:
            self._fail(StrangerError(self._parts.worker))

    def _note_confirmation(self, confirmed: Confirmed) -> None:
        """Once it was let in, a refusal is the broker's list being changed: that may pass."""
        self._is_known |= confirmed.token is not None

    def _carry_out(self, commands: list[c.AnyCommand]) -> None:
        carriers = self._carriers
        for command in commands:
            carriers[type(command)](command)

    def _end(self, command: c.StopWorker) -> None:
        self._is_over, self._starts_again = True, command.again

    async def _save_and_tell(self) -> None:
        """Save, and only then acknowledge and tell; if the disk refuses, do neither."""
        turn = self._turn
        must_save = (
            turn.keep or turn.clears or (turn.forget and (self._is_tidying or self._is_over))
        )
        if must_save and not await self._save():
            for send in turn.take_unpromising():
                self._publish(send)
            return
        self._is_tidying = False
        if turn.deliveries:
            self._parts.bus.acknowledge(turn.deliveries)
        for send in turn.messages():
            self._publish(send)
        turn.told()

    async def _save(self) -> bool:
        """Commit the turn; after a failure only when its pause is over."""
        turn, now_ms = self._turn, self._parts.now_ms()
        if now_ms < self._retry_at_ms and not self._is_over:
            return False
        loop = asyncio.get_running_loop()
        commit = partial(
            self._parts.spool.commit,
            keep=list(turn.keep.values()),
            forget=list(turn.forget),
            answers=list(turn.answers),
            clear=turn.clears,
        )
        try:
            await loop.run_in_executor(self._executor, commit)
        except SpoolUnavailableError as error:
            if not self._retry_ms:
                self._carry_out(self._session.handle(e.SpoolFailed(), now_ms))
            self._retry_ms = min(max(RETRY_FIRST_MS, self._retry_ms * 2), RETRY_MOST_MS)
            self._retry_at_ms = now_ms + self._retry_ms
            _log.error("spool.unavailable", error=str(error), next_try_ms=self._retry_ms)
            return False
        turn.saved()
        if self._retry_ms:
            _log.info("spool.recovered")
            self._retry_ms = self._retry_at_ms = 0
            self._carry_out(self._session.handle(e.SpoolRecovered(), now_ms))
        return True

    # ------------------------------------------------------------ telling

    def _publish(self, send: c.Send) -> None:
        channel = send.channel
        publication = Publication(
            topic=self._parts.topics.name(channel, *send.ids),
            payload=encode(send.message),
            qos=channel.qos,
            retain=channel.retain,
            expiry_s=None if send.expiry_ms is None else max(1, send.expiry_ms // 1_000),
            content_type=CONTENT_TYPE_JSON,
            # A refusal of these means that the broker's rules do not know this worker.
            token=channel.name if channel.retain else None,
        )
        if len(self._unsent) < UNSENT_MOST or channel.retain:
            self._unsent.append(publication)
        self._flush()

    def _flush(self) -> None:
        """Hand over what is to be published; what the bus has no room for waits here, in order."""
        while self._unsent:
            try:
                self._parts.bus.publish(self._unsent[0])
            except BusFullError:
                return
            except BusClosedError as error:
                self._fail(error)
                return
            self._unsent.popleft()

    def _say_goodbye(self) -> None:
        """Whatever ended the run: say offline ourselves, for a clean disconnect sends no will."""
        gone = m.Presence(
            status=m.PresenceStatus.OFFLINE,
            boot=self._session.info.boot,
            since_at_ms=self._parts.now_ms(),
        )
        self._publish(c.Send(t.PRESENCE, (self._parts.worker,), gone))

    def _probe(self, probe: m.Probe) -> None:
        self._publish(c.Send(t.PROBE, (self._parts.worker,), probe))

    def _ask_certificate(self, request: m.CertificateRequest) -> None:
        self._publish(c.Send(t.CERTIFICATE_REQUEST, (self._parts.worker,), request))

    def _hear_certificate(self, reply: m.CertificateReply) -> None:
        if self._parts.keeper is not None:
            self._parts.keeper.heard(reply)

    # ------------------------------------------------------------ what feeds the inbox

    def _put(self, events: list[e.AnyEvent]) -> None:
        self._inbox.extend(events)
        self._wake.set()

    def _fail(self, error: BusClosedError) -> None:
        self._failure = self._failure or error
        self._wake.set()

    async def _read_bus(self) -> None:
        while True:
            if len(self._inbox) >= BACKLOG_MOST:
                self._room.clear()
                await self._room.wait()
            try:
                events = await self._parts.bus.receive()
            except BusClosedError as error:
                self._fail(error)
                return
            self._inbox.extend(events)
            self._wake.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._parts.pace.tick_s)
            self._flush()
            self._is_tidying = True
            self._put([e.TimePassed()])

    async def _beat(self) -> None:
        loop, pace = asyncio.get_running_loop(), self._parts.pace
        with ThreadPoolExecutor(1, thread_name_prefix="edge-host") as executor:
            while True:
                reading = await loop.run_in_executor(executor, self._parts.host.read)
                self._put([e.HostRead(reading)])
                await asyncio.sleep(pace.heartbeat_s * self._parts.rng.uniform(0.8, 1.2))

    def _start_measuring(self, _command: c.MeasureBandwidth) -> None:
        if self._group is None or (self._measuring is not None and not self._measuring.done()):
            return
        self._measuring = self._group.create_task(self._measure(), name="worker-bandwidth")

    async def _measure(self) -> None:
        mbps = await self._meter.measure()
        _log.info("bandwidth.measured", mbps=None if mbps is None else round(mbps, 1))
        self._put([e.BandwidthMeasured(mbps)])
