"""Several dispatchers around one store, as the real shell drives them: decide, save, then tell.

A member's turns wait until they are saved, for as long as the test likes: a commit may come after
its lease ran out and others took over. What must hold of every single turn is checked here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cloud_dispatcher.adapters.cluster_memory import MemoryCluster, MemoryClusterStore
from cloud_dispatcher.cluster import Cluster
from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import MemberId
from cloud_dispatcher.core.results import as_message
from cloud_dispatcher.lookup import LookUp
from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.turn import Turn
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.property.modelled_shell import (
    LEASED,
    SETTINGS,
    ModelledWorker,
    offline,
    tariff,
)

_R = TypeVar("_R")


def now(call: Coroutine[Any, Any, _R]) -> _R:
    """Run what never waits: the store is in memory."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


class Calm:
    """The store always works."""

    async def on(self, call: Callable[[], Awaitable[_R]]) -> _R:
        return await call()


class DeafLines:
    """Every word reaches every member here: what is not theirs they must leave alone."""

    are_up = True

    def listen(self, workers: object) -> None:
        del workers

    def forget(self, workers: object) -> None:
        del workers


class ModelledMember:
    """One dispatcher, over all its runs."""

    def __init__(self, world: ModelledCluster, name: str) -> None:
        self.world = world
        self.name = name
        self.runs = 0
        self.is_up = False
        self.turns: list[Turn] = []
        self.calls: dict[m.JobKey, c.CompletionRequest] = {}

    def start(self) -> None:
        """Start anew, as another member of the same name; retained messages come again."""
        self.runs += 1
        self.is_up = True
        self.turns.clear()
        self.calls.clear()
        world = self.world
        self.id = MemberId(f"{self.name}-{self.runs}")
        self.store = MemoryClusterStore(world.database, name=self.name, member=self.id)
        self.engine = Engine(SETTINGS, "cluster", tariff=tariff, offline=offline)
        self.inbox: list[e.AnyEvent] = []
        self.cluster = Cluster(
            self.store,
            figures=self.engine.figures,
            report=self.inbox.append,
            clock=lambda: world.now_ms,
            lines=DeafLines(),
        )
        self.lookup = LookUp(self.store, Calm(), engine=self.engine, cluster=self.cluster)
        now(self.store.join())
        self.engine.recover((), world.now_ms)
        for worker in world.workers:
            for event in worker_words(worker):
                self.hear(event)
        self.beat()

    def crash(self) -> None:
        """Kill -9: what was decided and not saved is gone, and so is who decided."""
        self.is_up = False
        self.turns.clear()
        self.calls.clear()

    def beat(self) -> None:
        """Renew the lease, and take what is there to be taken."""
        try:
            more = True
            while more:
                more = now(self.cluster.beat())
                while self.inbox:
                    self._decide(self.inbox.pop(0))
        except MemberFencedError:
            self.crash()

    def hear(self, event: e.AnyEvent) -> None:
        """Deal with what the broker delivers."""
        ours = self.cluster.hear(event)
        if ours is None:
            return
        try:
            self._decide(ours)
        except MemberFencedError:
            self.crash()

    def pass_time(self, until_ms: int) -> None:
        """Wake the engine if it asked for it."""
        wake_ms = self.engine.next_wake_at_ms()
        if wake_ms is not None and wake_ms <= until_ms:
            self._decide(e.TimePassed())

    def save(self, turns: int = 1_000) -> None:
        """Save and tell the oldest turns."""
        for _ in range(min(turns, len(self.turns))):
            turn = self.turns.pop(0)
            try:
                now(self._save(turn))
            except MemberFencedError:
                is_over = self.id not in self.world.database.members
                assert is_over, "the store says otherwise than a member that is there"
                self.crash()
                return
            self._tell(turn)

    def _decide(self, event: e.AnyEvent) -> None:
        turn = Turn()
        for current in now(self.lookup.inform([event], turn)):
            turn.decide(current, self.engine.handle(current, self.world.now_ms), self.world.now_ms)
        self.cluster.forget(turn.released)
        self.turns.append(turn)

    async def _save(self, turn: Turn) -> None:
        if turn.saves or turn.spends or turn.answers:
            before = {key: self.world.jobs.get(key) for key in turn.saves}
            await self.store.commit(
                tuple(turn.saves.values()), tuple(turn.spends), tuple(turn.answers)
            )
            for job in turn.saves.values():
                self.world.check_saved(before[job.key], job)
        self.cluster.saved(turn.claimed)
        await self.cluster.give(turn.handed, turn.released)
        while self.inbox:
            self._decide(self.inbox.pop(0))

    def _tell(self, turn: Turn) -> None:
        for call in turn.calls:
            if isinstance(call, c.StartCompletion):
                self.calls[call.request.job] = call.request
            else:
                self.calls.pop(call.job, None)
        for message in turn.messages:
            if isinstance(message, c.Send):
                self.world.publish(self, message)


class ModelledCluster:
    """The store, the boards and the members; and what all of them were ever told."""

    def __init__(self, members: int = 3) -> None:
        self.now_ms = 1_000_000
        self.database = MemoryCluster(lambda: self.now_ms)
        self.jobs = self.database.store._jobs
        self.workers = [
            ModelledWorker("fast", slots=2, prefetch=1, tok_s=87.0),
            ModelledWorker("slow", slots=1, prefetch=0, tok_s=9.0),
            ModelledWorker("even", slots=1, prefetch=1, tok_s=87.0),
            ModelledWorker("more", slots=1, prefetch=0, tok_s=87.0),
        ]
        self.results: dict[m.JobKey, list[m.JobResult]] = defaultdict(list)
        self.unconfirmed: set[tuple[str, m.JobKey]] = set()
        self.accepted: set[tuple[str, str]] = set()
        self.holders: dict[tuple[m.JobKey, int], str] = {}
        self.retries: Counter[m.JobKey] = Counter()
        self.members = [ModelledMember(self, f"m{number}") for number in range(members)]
        for member in self.members:
            member.start()
        for member in self.members:
            member.beat()

    @property
    def up(self) -> list[ModelledMember]:
        """Members that were not killed; they may be over all the same."""
        return [member for member in self.members if member.is_up]

    def say(self, *events: e.AnyEvent) -> None:
        """Let all members hear something."""
        for event in events:
            for member in self.up:
                member.hear(event)

    def come_online(self, worker: ModelledWorker) -> None:
        """Start a board anew."""
        worker.boots += 1
        worker.is_online = True
        self.say(*worker_words(worker), e.HeldReceived(worker=worker.id, held=worker.held))

    def report(self, worker: ModelledWorker, key: tuple[str, int]) -> None:
        """Send the outcome that lies in the spool."""
        job, outcome = m.JobKey(key[0]), worker.spool[key]
        if isinstance(outcome, m.JobDone):
            self.say(e.DoneReceived(worker=worker.id, job=job, done=outcome))
        elif isinstance(outcome, m.JobFailed):
            self.say(e.FailureReceived(worker=worker.id, job=job, failure=outcome))
        elif isinstance(outcome, m.Escalation):
            self.say(e.EscalationReceived(worker=worker.id, job=job, escalation=outcome))

    def pass_time(self, span_ms: int) -> None:
        """Let time pass, waking each engine once for all that is due."""
        self.now_ms += span_ms
        for member in self.up:
            member.pass_time(self.now_ms)

    # ------------------------------------------------------------ what must hold

    def publish(self, by: ModelledMember, send: c.Send) -> None:
        """Take what a member says, and see that it may say it."""
        message = send.message
        if send.confirms is not None:
            self._check_result(send.confirms, message)
            self.unconfirmed.add((by.name, send.confirms))
        elif send.channel is topics.ACK and isinstance(message, m.JobAck):
            if message.status is m.AckStatus.ACCEPTED:
                known = {(job.device, job.id) for job in self.jobs.values()}
                assert send.ids in known, "accepted before it was saved"
                self.accepted.add((send.ids[0], send.ids[1]))
        elif send.channel.receivers == (topics.Role.WORKER,):
            worker = next(w for w in self.workers if w.id == send.ids[0])
            self._check_word(worker, message)
            worker.inbox.append(message)

    def check_saved(self, old: Job | None, job: Job) -> None:
        """See what a commit that was let through changed."""
        if old is not None:
            assert job.attempt >= old.attempt, "an attempt number went back"
            went_back = old.result is not None and job.result is None
            assert not went_back or self.retries[job.key], "a final result was taken back"
        results = self.results[job.key]
        if job.result is not None and job.result not in results:
            results.append(job.result)
            # Each time that an operator retries a job it may get another one.
            assert len(results) <= 1 + self.retries[job.key], "a final result changed"
        if job.status is m.JobStatus.ASSIGNED:
            lease = (job.key, job.attempt)
            assert self.holders.setdefault(lease, str(job.worker)) == job.worker, (
                "one attempt was given to two workers"
            )
        elif job.status is m.JobStatus.ESCALATED and job.lease_until_ms is not None:
            before = self.holders.setdefault((job.key, job.attempt), "the cloud")
            assert before == "the cloud", "one attempt was given to a board and to the cloud"
        names = [(x.device, x.id) for x in self.jobs.values()]
        assert len(names) == len(set(names)), "a job runs twice"

    def _check_result(self, key: m.JobKey, message: m.Message) -> None:
        job = self.jobs[key]
        said = [as_message(job, result) for result in self.results[key]]
        assert message in said, "a result was told that was not saved"

    def _check_word(self, worker: ModelledWorker, message: m.Message) -> None:
        if isinstance(message, m.Assignment):
            lease = (m.JobKey(message.job), message.attempt)
            assert self.holders.get(lease) == worker.id, "an assignment was sent unsaved"

    def check_books(self) -> None:
        """Once all is quiet: every job and worker has one owner, and each owner knows its own."""
        live = {member.id: member for member in self.up if member.id in self.database.members}
        for member in live.values():
            ledger = member.engine._ledger
            for key, job in ledger.jobs.items():
                assert self.database.owners.get(key) == member.id, "a job is here and elsewhere"
                if job.status in LEASED:
                    assert self.database.workers.get(m.WorkerId(str(job.worker))) == member.id
        for key, job in self.jobs.items():
            owner = self.database.owners[key]
            if not job.told and owner in live and key not in self.database.handed:
                assert key in live[owner].engine._ledger.jobs, "a job was lost"


def worker_words(worker: ModelledWorker) -> list[e.AnyEvent]:
    """Return what the broker keeps of a worker."""
    if not worker.boots:
        return []
    status = m.PresenceStatus.ONLINE if worker.is_online else m.PresenceStatus.OFFLINE
    presence = m.Presence(status=status, boot=worker.boot)
    return [
        e.InfoReceived(worker=worker.id, info=worker.info),
        e.PresenceChanged(worker=worker.id, presence=presence),
    ]
