"""The shell: inbox -> engine -> store -> bus. The only loop that awaits.

A turn takes everything that arrived, decides on it in order, saves in ONE transaction, and only
then acknowledges, publishes and starts what was decided. While a commit runs, the next turn is
decided and grows with all that arrives; it is saved and told after this one. The busier it is, the
more jobs share a transaction.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, nullcontext
from typing import Final, TypeAlias

import structlog
from msgspec.structs import replace

from cloud_dispatcher.alert_watch import AlertWatch
from cloud_dispatcher.arrivals import Arrival, Arrivals
from cloud_dispatcher.cluster import Cluster
from cloud_dispatcher.completions import CompletionLane
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.alert_log import AlertLog
from cloud_dispatcher.core.commands import StartCompletion
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import day_of
from cloud_dispatcher.frequent import FrequentQuestions
from cloud_dispatcher.history import History
from cloud_dispatcher.home_assistant import HomeAssistant
from cloud_dispatcher.housekeeping import Housekeeping, HousekeepingSettings
from cloud_dispatcher.inquiries import Inquiries
from cloud_dispatcher.inquiry_desk import InquiryDesk
from cloud_dispatcher.insistence import Insistence, StoppedError
from cloud_dispatcher.intake import (
    AlertsAsked,
    EchoAsked,
    Intake,
    read_confirmation,
    read_refusal,
)
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.library_watch import LibraryWatch
from cloud_dispatcher.load_watch import LoadWatch
from cloud_dispatcher.local_devices import LocalDevices
from cloud_dispatcher.lookup import LookUp
from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.observers import FleetFigures
from cloud_dispatcher.outside import Outside
from cloud_dispatcher.presence import WorkerLines, presence_of, says_offline
from cloud_dispatcher.publisher import Publisher
from cloud_dispatcher.roster_shards import RosterShards
from cloud_dispatcher.turn import Turn
from fleet_protocol import messages as m
from fleet_protocol import topics as channels
from fleet_protocol.bus import (
    Confirmed,
    Delivery,
    LinkDown,
    LinkUp,
    Refused,
)
from fleet_protocol.errors import BusClosedError

_log = structlog.get_logger(__name__)

_Watch: TypeAlias = (
    Housekeeping | LoadWatch | LibraryWatch | RosterShards | AlertWatch | HomeAssistant
)

_TOLD_WAIT_MS: Final = 20
"""How long the word that a result was told waits for company before it gets a commit alone."""
_TURN_MAX: Final = 500
"""Arrivals in one turn: bounds how long the loop is busy and how much one commit holds."""


class DispatcherService:
    """Runs the dispatcher, once, from `run` until `stop`.

    Attributes:
        local: Devices in this very process.
        history: The last day's figures.
        alerts: What fires here, and what did.
    """

    def __init__(
        self, engine: Engine, outside: Outside, settings: HousekeepingSettings | None = None
    ) -> None:
        self._engine = engine
        self._outside = outside
        self._clock = outside.clock
        self._store = outside.store
        mint = KeyMint(secrets.randbits)
        self._intake = Intake(outside.topics, mint)
        shared = outside.shared
        signature = f"-{outside.cluster.name}" if shared is not None else ""
        self.alerts = AlertLog(outside.alerts.load() if outside.alerts else ())
        self._publisher = Publisher(
            outside.bus, outside.topics, signature=signature, alerts=self.alerts
        )
        figures = FleetFigures()
        self.history = History()
        self.local = LocalDevices(self._report, mint, outside.clock)
        self._observers = (*outside.observers, figures, self.local)
        self._cluster: Cluster | None = None
        if shared is not None:
            self._cluster = Cluster(
                shared,
                figures=lambda: replace(
                    engine.figures(), summary=figures.summary(outside.clock(), engine.summary())
                ),
                report=self._report,
                clock=outside.clock,
                lines=WorkerLines(outside.bus, outside.topics),
                settings=outside.cluster,
            )
        self._house = Housekeeping(
            settings or HousekeepingSettings(),
            store=outside.store,
            publisher=self._publisher,
            summarize=lambda now_ms: figures.summary(now_ms, engine.summary()),
            provider=outside.provider,
            history=self.history,
        )
        if self._cluster is not None:
            self._house.spoken = self._cluster.spoken
        load = LoadWatch(
            self._publisher, memory=outside.memory, view=engine.load, report=self._report
        )
        library = outside.library
        roster = RosterShards(
            self._publisher,
            roll=engine.roll,
            view=engine.worker,
            name=outside.cluster.name or "",
        )
        self._alert_watch = AlertWatch(
            self._publisher,
            outside.alerts,
            clock=outside.clock,
            members=lambda: 0 if self._cluster is None else len(self._cluster.members),
        )
        self._watches: tuple[_Watch, ...] = (self._house, load, roster, self._alert_watch)
        if library is not None:
            self._watches += (LibraryWatch(library, self._publisher),)
        if outside.home_assistant.enabled:
            described = HomeAssistant(
                self._publisher,
                outside.topics,
                prefix=outside.home_assistant.prefix,
                roll=lambda: (worker for worker, _ in engine.roll()),
                view=engine.worker,
            )
            self._watches += (described,)
        self._stopping = asyncio.Event()
        self._connecting: asyncio.Timeout | None = None
        self._insistence = Insistence(
            self._publisher, clock=outside.clock, stopping=self._stopping, alive=outside.alive
        )
        inquiries = Inquiries(
            outside,
            self._insistence,
            engine=engine,
            frequent=FrequentQuestions(outside.store, engine, mint=mint, report=self._report),
        )
        self._desk = InquiryDesk(inquiries, self._alert_watch, self._publisher, outside.inquired)
        self._lookup = LookUp(outside.store, self._insistence, engine=engine, cluster=self._cluster)
        self._inbox = Arrivals()
        self._failure: BusClosedError | MemberFencedError | None = None
        self._saving: asyncio.Task[None] | None = None
        self._under_way: dict[m.JobKey, Job] = {}
        self._told: dict[m.JobKey, Job] = {}
        self._told_due_at_ms = 0

    # ---------------------------------------------------------------- life

    async def run(self) -> None:
        """Recover, connect, serve until `stop`, say goodbye.

        Raises:
            StoreUnavailableError: What is open cannot be read.
            FleetError: The broker cannot be had at all, see `MessageBus.__aenter__`.
            BusClosedError: The broker turned us away for good while we served.
            MemberFencedError: Other dispatchers took over what was ours: start anew.
        """
        if self._outside.library is not None:
            await self._outside.library.refresh()
        jobs = await self._store.load_open()
        now_ms = self._clock()
        recovered = Turn()
        spends = await self._store.spending(since_day=day_of(now_ms))
        recovered.decide(e.TimePassed(), self._engine.recover(jobs, now_ms, spends=spends), now_ms)
        _log.info("dispatcher.recovered", jobs=len(jobs), epoch=self._outside.epoch)
        async with AsyncExitStack() as connected:
            patience_s = 0 if self._stopping.is_set() else None
            try:
                async with asyncio.timeout(patience_s) as self._connecting:
                    await connected.enter_async_context(self._outside.bus)
            except TimeoutError:
                return
            finally:
                self._connecting = None
            await self._live(recovered)
        if self._failure is not None:
            raise self._failure

    async def _live(self, recovered: Turn) -> None:
        async with self._cluster or nullcontext(), asyncio.TaskGroup() as tasks:
            self._lane = CompletionLane(self._outside.provider, tasks, self._report)
            pump = tasks.create_task(self._pump(), name="bus-pump")
            beats = tasks.create_task(self._beat(), name="cluster-beat")
            desk = tasks.create_task(self._desk.run(), name="inquiries")
            try:
                await self._hand_over(recovered)
                await self._finish(await self._serve())
            except StoppedError as error:
                _log.warning("dispatcher.stopped_unsaved", code=error.code)
            except (BusClosedError, MemberFencedError) as error:
                self._failure = error
            finally:
                pump.cancel()
                beats.cancel()
                desk.cancel()
                if self._saving is not None:
                    self._saving.cancel()
                self._lane.stop_all()
                self._say_goodbye()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Deliveries that could not be used since the start, by code."""
        return self._intake.dropped

    @property
    def is_ready(self) -> bool:
        """Whether it serves: its jobs are read, and the broker is there."""
        return self._outside.bus.is_connected and not self._stopping.is_set()

    def stop(self) -> None:
        """Finish the turn at hand, then end `run`; while it still connects, end it at once."""
        self._stopping.set()
        self._inbox.call()
        if self._connecting is not None:
            self._connecting.reschedule(0)

    async def _pump(self) -> None:
        """Take from the bus while there is room."""
        while True:
            try:
                arrivals = await self._outside.bus.receive()
            except BusClosedError as error:
                self._failure = error
                self.stop()
                return
            await self._inbox.add_all(arrivals)

    async def _beat(self) -> None:
        """Stay a member, where there are several."""
        if self._cluster is not None:
            try:
                await self._cluster.run()
            except MemberFencedError as error:
                self._failure = error
                self.stop()

    def _report(self, event: e.AnyEvent) -> None:
        """Take in what happened inside: cloud outcomes, refusals."""
        self._inbox.add(event)

    async def _serve(self) -> Turn:
        """Take turns until the stop; return the one that was not handed over yet."""
        turn = Turn()
        while not self._stopping.is_set():
            if not self._inbox.is_due:
                self._set_alarm()
                await self._inbox.called()
            await self._decide(self._inbox.take(_TURN_MAX), turn)
            if not self._is_saving or len(turn.decided) >= _TURN_MAX:
                await self._hand_over(turn)
                turn = Turn()
            now_ms = self._clock()
            for watch in self._watches:
                await watch.keep(now_ms)
            self._outside.alive()
        return turn

    def _set_alarm(self) -> None:
        """Let a turn begin when the engine, the overview or the pruning is due."""
        due_at_ms = self._house.due_at_ms
        engine_at_ms = self._engine.next_wake_at_ms()
        if engine_at_ms is not None:
            due_at_ms = min(due_at_ms, engine_at_ms)
        if self._told and not self._is_saving:
            due_at_ms = min(due_at_ms, self._told_due_at_ms)
        self._inbox.call_within(max(0, due_at_ms - self._clock()) / 1_000)

    # ---------------------------------------------------------------- one turn

    async def _decide(self, arrivals: Iterable[Arrival], turn: Turn) -> None:
        """Let a turn grow by what arrived."""
        now_ms = self._clock()
        events: list[e.AnyEvent] = []
        for arrival in arrivals:
            event = self._read(arrival, turn, now_ms)
            if event is not None:
                events.append(event)
        engine_at_ms = self._engine.next_wake_at_ms()
        if engine_at_ms is not None and engine_at_ms <= now_ms:
            events.append(e.TimePassed())
        for event in await self._lookup.inform(events, turn):
            current = self._lookup.again(event, turn, (self._told, self._under_way))
            turn.decide(current, self._engine.handle(current, now_ms), now_ms)
        if self._cluster is not None:
            self._cluster.forget(turn.released)

    def _read(self, arrival: Arrival, turn: Turn, now_ms: int) -> e.AnyEvent | None:
        """Return what the engine must hear of; deal with the rest."""
        if isinstance(arrival, Delivery):
            turn.deliveries.append(arrival)
            return self._read_delivery(arrival, turn, now_ms)
        if isinstance(arrival, Confirmed):
            return read_confirmation(arrival)
        if isinstance(arrival, Refused):
            return read_refusal(arrival)
        if isinstance(arrival, LinkUp):
            self._publish_presence(m.DispatcherStatus.ONLINE)
            self._insistence.announce()
            for watch in self._watches:
                watch.announce()
            return e.LinkRestored(session_present=arrival.session_present)
        if isinstance(arrival, LinkDown):
            return e.LinkLost()
        return arrival

    def _read_delivery(self, delivery: Delivery, turn: Turn, now_ms: int) -> e.AnyEvent | None:
        cluster = self._cluster
        if cluster is not None and delivery.topic == self._outside.topics.name(channels.DISPATCHER):
            if says_offline(delivery):  # One of several is gone: we are there.
                self._publish_presence(m.DispatcherStatus.ONLINE)
            return None
        meaning = self._intake.read(delivery, now_ms)
        if meaning is None:
            return None
        if isinstance(meaning, e.Event):
            return meaning if cluster is None else cluster.hear(meaning)
        if isinstance(meaning, EchoAsked):
            # At once: what a worker measures is its link, not our disk.
            self._publisher.echo(meaning.worker, meaning.payload)
        elif cluster is None or cluster.leads or isinstance(meaning, AlertsAsked):
            turn.requests.append(meaning)
        return None

    def _put_off_told(self, turn: Turn, now_ms: int) -> None:
        """Nothing waits for the word that results were told: let it share the next commit.

        Not for long: a result that is not saved as told is told again after a crash.
        """
        if turn.saves and all(job.told for job in turn.saves.values()):
            if not self._told:
                self._told_due_at_ms = now_ms + _TOLD_WAIT_MS
            self._told |= turn.saves
            turn.saves = {}
        if self._told and (turn.saves or now_ms >= self._told_due_at_ms):
            turn.saves = self._told | turn.saves
            self._told = {}

    @property
    def _is_saving(self) -> bool:
        return self._saving is not None and not self._saving.done()

    async def _hand_over(self, turn: Turn) -> None:
        """Let a turn be saved and told while the next is decided. Turns are told in order."""
        await self._saved()
        self._put_off_told(turn, self._clock())
        if turn.saves or turn.spends or turn.answers or turn.gives:
            work = self._save_and_tell(turn)
            self._saving = asyncio.create_task(work, name="save-and-tell")
            self._saving.add_done_callback(lambda _: self._inbox.call())
            self._under_way = turn.saves
        else:
            self._tell(turn)

    async def _saved(self) -> None:
        """Wait for the turn that is being saved, if there is one."""
        if self._saving is not None:
            await self._saving
            self._saving = None
            self._under_way = {}

    async def _finish(self, turn: Turn) -> None:
        """Save and tell what was decided before the stop."""
        self._told_due_at_ms = 0
        await self._hand_over(turn)
        await self._saved()
        await self._desk.finish()

    async def _save_and_tell(self, turn: Turn) -> None:
        """Save before you tell. Nothing of a turn leaves before its commit returned."""
        if turn.saves or turn.spends or turn.answers:
            jobs, spends = tuple(turn.saves.values()), tuple(turn.spends)
            answers = tuple(turn.answers)
            await self._insistence.on(lambda: self._store.commit(jobs, spends, answers))
        if self._cluster is not None and turn.gives:
            cluster = self._cluster
            await self._insistence.on(lambda: cluster.give(turn.handed, turn.released))
        self._tell(turn)

    def _tell(self, turn: Turn) -> None:
        if self._cluster is not None:
            self._cluster.saved(turn.claimed)
        self._outside.bus.acknowledge(turn.deliveries)
        for job in self._publisher.tell(turn.messages):
            self._report(e.ResultRefused(job=job, code="bus_full"))
        for call in turn.calls:
            if isinstance(call, StartCompletion):
                self._lane.start(call)
            else:
                self._lane.stop(call.job)
        self._desk.take(turn.requests)
        for event, decided, now_ms in turn.decided:
            for observer in self._observers:
                observer.observe(event, decided, now_ms)

    def _publish_presence(self, status: m.DispatcherStatus) -> None:
        presence = presence_of(self._outside.epoch, status, since_at_ms=self._clock())
        self._publisher.send(channels.DISPATCHER, presence)

    def _say_goodbye(self) -> None:
        others = self._cluster is not None and len(self._cluster.members) > 1
        if self._failure is None and not others:
            self._publish_presence(m.DispatcherStatus.OFFLINE)
