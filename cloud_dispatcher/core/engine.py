"""The dispatcher's decisions: an event and the time go in, commands come out.

Pure: no await, no clock, no randomness, no I/O. The shell saves every `SaveJob` of a turn in one
transaction before it carries out the rest, so nobody is told what is not on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.admin import AdminDesk
from cloud_dispatcher.core.answers import AnswerCache
from cloud_dispatcher.core.cloud_lane import CloudLane, Tariff, always_cheap
from cloud_dispatcher.core.coalescing import Coalescer
from cloud_dispatcher.core.commands import AnyCommand
from cloud_dispatcher.core.edge_lane import EdgeLane
from cloud_dispatcher.core.exchange import Exchange
from cloud_dispatcher.core.intake import Intake
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import LEASED, Ledger
from cloud_dispatcher.core.members import Figures
from cloud_dispatcher.core.offline import OfflineAnswers, no_library
from cloud_dispatcher.core.outbox import Outbox
from cloud_dispatcher.core.parts import Parts
from cloud_dispatcher.core.policies import policy_of
from cloud_dispatcher.core.roster import Roster
from cloud_dispatcher.core.scheduler import Policy
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import Payer, Spend
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.messages import (
    BudgetView,
    CacheRow,
    CacheView,
    DeviceId,
    JobId,
    JobKey,
    JobStatus,
    JobSubmit,
    LoadView,
    PresenceStatus,
    Reason,
    WorkerId,
    WorkerView,
)

_DUE_MOST: Final = 500
"""Alarms served in one turn; the rest are due at once again, so other events get their turn."""


class EngineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What is going on now.

    Attributes:
        queued: Jobs waiting for a slot, retry pauses included.
        delayed: Jobs that their devices want later.
        inflight: Jobs under a lease.
        escalated: Jobs in the cloud lane.
        untold: Finished jobs whose result the broker did not confirm.
        workers: Number of workers by presence.
        busy: Workers that have a job.
        hot: Workers that are there and slowed down by their heat.
        tok_s: Tokens generated per second, by all workers that are there.
        load: Whether there is too much to do.
    """

    queued: int
    delayed: int = 0
    inflight: int
    escalated: int
    untold: int
    workers: dict[str, int]
    busy: int = 0
    hot: int = 0
    tok_s: float = 0.0
    load: LoadView = msgspec.field(default_factory=LoadView)


class Engine:
    """One dispatcher's jobs and fleet. One owner, one task feeding it.

    `now_ms` is UTC epoch milliseconds and should not jump: take the wall clock once at start and
    add a monotonic one. A jump back makes no negative span, one ahead ends leases too early;
    neither loses a job.
    """

    def __init__(
        self,
        settings: EngineSettings,
        epoch: str,
        *,
        policy: Policy | None = None,
        tariff: Tariff = always_cheap,
        offline: OfflineAnswers = no_library,
        has_cloud: bool = True,
    ) -> None:
        """Make an engine that knows nothing; `recover` tells it what the store holds.

        Args:
            settings: See there.
            epoch: Name of this run of the dispatcher, as workers are told it.
            policy: How workers are ranked; None: as the settings say.
            tariff: When the cloud costs less.
            offline: What is said where nobody answers.
            has_cloud: Whether any provider is set up.
        """
        self.epoch = epoch
        policy = policy or policy_of(settings.scheduling)
        self._ledger = Ledger(settings, policy, has_cloud=has_cloud)
        self._outbox = Outbox(self._ledger, offline)
        self._edge = EdgeLane(self._ledger, self._outbox)
        self._cloud = CloudLane(self._ledger, self._outbox, self._edge, tariff)
        self._answers = AnswerCache(self._ledger)
        self._coalescer = Coalescer(self._ledger, self._outbox)
        self._parts = Parts(self._ledger, self._outbox, self._edge)
        self._intake = Intake(
            self._ledger,
            self._outbox,
            self._cloud,
            answers=self._answers,
            coalescer=self._coalescer,
            parts=self._parts,
        )
        self._roster = Roster(self._ledger, self._edge)
        self._exchange = Exchange(
            self._ledger,
            self._edge,
            self._roster,
            self._coalescer,
            take_up=self._take_up,
            go_on=self._go_on,
        )
        self._admin = AdminDesk(
            self._ledger, self._outbox, self._intake, self._answers, self._exchange
        )
        self._handlers = self._table()

    def handle(self, event: e.AnyEvent, now_ms: int) -> list[AnyCommand]:
        """Return what is to be done about an event, in order."""
        ledger = self._ledger
        ledger.now_ms = now_ms
        self._handlers[type(event)](event)
        if ledger.finished:
            self._settle()
        if ledger.queue.has_ready:
            self._edge.assign_ready()
        return ledger.take_commands()

    def recover(
        self, jobs: Sequence[Job], now_ms: int, *, spends: Sequence[Spend] = ()
    ) -> list[AnyCommand]:
        """Take up the open and untold jobs of an earlier run, and what it spent, before any event.

        Leases start afresh with their holders, so that workers have time to say what they hold
        and nothing runs twice needlessly; provider calls died with the process and are made anew.
        """
        ledger = self._ledger
        ledger.now_ms = ledger.began_at_ms = ledger.linked_at_ms = now_ms
        self._ledger.budget.record(spends, now_ms)
        for job in jobs:
            self._take_up(job)
        self._go_on(jobs)
        self._settle()
        return self._ledger.take_commands()

    def next_wake_at_ms(self) -> int | None:
        """Return when `TimePassed` is due next; None: never, unless something else happens."""
        ledger = self._ledger
        job_ms, worker_ms = ledger.job_alarms.next_at_ms(), ledger.worker_alarms.next_at_ms()
        due_ms = (job_ms, worker_ms, ledger.fleet.outliers.sweep_at_ms)
        return min((at_ms for at_ms in due_ms if at_ms is not None), default=None)

    def find_open(self, device: DeviceId, job_id: JobId) -> Job | None:
        """Return the job of this name that is open or whose result is not confirmed."""
        return self._ledger.find(device, job_id)

    def get(self, key: JobKey) -> Job | None:
        """Return a job that is open or whose result is not confirmed."""
        return self._ledger.jobs.get(key)

    def tenant_of(self, device: DeviceId) -> str:
        """Return who a device belongs to."""
        return self._ledger.budget.tenant_of(device)

    def answer_key(self, device: DeviceId, submit: JobSubmit) -> bytes | None:
        """Return what the question has in common with equal ones; None: no answer to it is kept."""
        return self._answers.key_of(device, submit)

    def may_give(self, answer: CachedAnswer, submit: JobSubmit, now_ms: int) -> bool:
        """Tell whether a stored answer would be given to such a job now."""
        return self._answers.serves(answer, submit, now_ms)

    def wanted_answer(self, device: DeviceId, submit: JobSubmit) -> bytes | None:
        """Return the key under which the store may have the answer; None: it need not look."""
        key = self._answers.key_of(device, submit)
        return None if key is None or key in self._answers.recent else key

    def summary(self) -> EngineSummary:
        """Count what is going on now."""
        counts, workers = self._ledger.counts, Counter[PresenceStatus]()
        busy, hot, tok_s = 0, 0, 0.0
        for worker in self._exchange.our_workers():
            status = worker.status
            workers[status] += 1
            if worker.leases:
                busy += 1
            if worker.state is not None and status is not PresenceStatus.OFFLINE:
                tok_s += worker.state.tok_s
                if worker.state.throttled:
                    hot += 1
        return EngineSummary(
            queued=counts[JobStatus.QUEUED] - self._ledger.delayed,
            delayed=self._ledger.delayed,
            inflight=sum(counts[status] for status in LEASED),
            escalated=counts[JobStatus.ESCALATED],
            untold=len(self._outbox),
            workers={status.value: count for status, count in workers.items()},
            busy=busy,
            hot=hot,
            tok_s=tok_s,
            load=self.load(),
        )

    def load(self) -> LoadView:
        """Return whether there is too much to do, and what is given up for it."""
        return self._ledger.overload.view()

    def budgets(
        self, now_ms: int, payers: Iterable[tuple[DeviceId, Payer]] = ()
    ) -> tuple[BudgetView, ...]:
        """Return what was spent today, and what may be: see `Budget.views`."""
        return self._ledger.budget.views(now_ms, payers)

    def cache_view(self, stored: tuple[CacheRow, ...]) -> CacheView:
        """Return the answer cache as an operator sees it, the store's part being given."""
        return self._answers.view(stored)

    def workers(self) -> list[WorkerView]:
        """Return all workers as an operator sees them."""
        return [worker.view() for worker in self._exchange.our_workers()]

    def roll(self) -> list[tuple[WorkerId, PresenceStatus]]:
        """Return who is there, and whether."""
        return [(worker.id, worker.status) for worker in self._exchange.our_workers()]

    def worker(self, worker_id: WorkerId) -> WorkerView | None:
        """Return a worker as an operator sees it; None: it is not known."""
        worker = self._ledger.fleet.find(worker_id)
        return None if worker is None else worker.view()

    def figures(self) -> Figures:
        """Return what other dispatchers should know of this one."""
        return self._exchange.figures()

    def _table(self) -> dict[type[e.Event], Callable[[Any], None]]:
        """One handler an event. A table, not a match: this is the hottest line of the program."""
        return {
            e.JobSubmitted: self._intake.on_submitted,
            e.SubmissionMalformed: self._intake.on_malformed,
            e.JobCancelled: self._intake.on_cancelled,
            e.PresenceChanged: self._roster.on_presence,
            e.InfoReceived: self._roster.on_info,
            e.StateReceived: self._roster.on_state,
            e.HeldReceived: self._roster.on_held,
            e.StartReceived: self._edge.on_started,
            e.ProgressReceived: self._edge.on_progress,
            e.TokensReceived: self._edge.on_tokens,
            e.DoneReceived: self._edge.on_done,
            e.FailureReceived: self._on_failure,
            e.EscalationReceived: self._on_escalation,
            e.CompletionGrew: self._cloud.on_grew,
            e.CompletionFinished: self._cloud.on_finished,
            e.CompletionFailed: self._cloud.on_failed,
            e.ResultConfirmed: self._outbox.on_confirmed,
            e.ResultRefused: self._outbox.on_refused,
            e.AdminAsked: self._admin.on_asked,
            e.LinkLost: self._on_link_lost,
            e.LinkRestored: self._on_link_restored,
            e.LoadLooked: self._on_load_looked,
            e.BoardsAcquired: self._exchange.on_acquired,
            e.RoomOffered: self._exchange.on_offered,
            e.SharesFound: self._exchange.on_shares,
            e.SpendingRead: self._exchange.on_spending,
            e.TimePassed: self._on_time_passed,
        }

    def _settle(self) -> None:
        """Let the results of this turn serve equal questions; that may lead to further results."""
        ledger = self._ledger
        while ledger.finished:
            finished, ledger.finished = ledger.finished, []
            for job in finished:
                self._answers.keep(job)
                heir = self._coalescer.settle(job)
                if heir is not None:
                    self._intake.place(heir)
                self._place(self._parts.settle(job))

    def _place(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._intake.place(job)

    def _on_failure(self, event: e.FailureReceived) -> None:
        failure = event.failure
        if failure.code == Reason.TOO_LONG:
            parts = self._parts.too_long(event.worker, event.job, failure.attempt)
            if parts:
                self._place(parts)
                return
        self._edge.on_failure(event)

    def _on_escalation(self, event: e.EscalationReceived) -> None:
        said = event.escalation
        if self._edge.current(event.worker, event.job, said.attempt) is not None:
            self._ledger.fleet.worked(event.worker)
        if said.reason is Reason.TOO_LONG:
            parts = self._parts.too_long(event.worker, event.job, said.attempt)
            if parts:
                self._place(parts)
                return
        self._cloud.on_escalation(event)

    def _take_up(self, job: Job) -> None:
        ledger = self._ledger
        if job.result is not None:
            if not job.told:
                ledger.put(job, save=False)
                self._outbox.tell(job)
        elif job.status in LEASED and job.worker is not None:
            worker = ledger.fleet.find(job.worker) or ledger.fleet.see(job.worker, ledger.now_ms)
            job = replace(job, lease_until_ms=ledger.lease_until_ms(job))
            ledger.grant(job, worker, save=False)
            self._coalescer.work_goes_on(job)
        elif job.status is JobStatus.ESCALATED:
            ledger.put(job, save=False)
            self._coalescer.work_goes_on(job)
            if job.lease_until_ms is not None or job.not_before_ms <= ledger.now_ms:
                self._cloud.call(job)
        elif job.is_delayed:
            ledger.put(job, save=False)
        elif not (self._parts.take_up(job) or self._coalescer.follows(job, save=False)):
            ledger.enqueue(job, save=False)

    def _go_on(self, jobs: Sequence[Job]) -> None:
        """Go on with jobs that were all taken up: those in parts, those whose time has come."""
        self._place(self._parts.resume(jobs))
        for job in jobs:
            if job.is_open and job.is_delayed and job.not_before_ms <= self._ledger.now_ms:
                self._intake.begin(job)

    def _on_link_lost(self, _: e.LinkLost) -> None:
        self._ledger.is_linked = False

    def _on_link_restored(self, event: e.LinkRestored) -> None:
        """Say again whatever the broker may have forgotten, and let everyone be heard afresh."""
        ledger = self._ledger
        ledger.is_linked, ledger.linked_at_ms = True, ledger.now_ms
        for worker in tuple(ledger.fleet.workers):
            if not worker.is_silent and worker.id in ledger.worker_alarms:
                ledger.heard(worker.id)
            for key in worker.leases:
                job = ledger.renew(ledger.jobs[key], ledger.jobs[key].status)
                if job.status is JobStatus.ASSIGNED:
                    worker.leases[key] = ledger.now_ms
                    self._edge.send_assignment(job, worker)
        older_than_ms = ledger.settings.result_retell_ms if event.session_present else 0
        self._outbox.retell(older_than_ms=older_than_ms)

    def _on_load_looked(self, event: e.LoadLooked) -> None:
        ledger = self._ledger
        waiting, memory_pct = len(ledger.queue), event.memory_pct
        ledger.overload.look(ledger.now_ms, waiting=waiting, memory_pct=memory_pct)

    def _on_time_passed(self, _: e.TimePassed) -> None:
        ledger = self._ledger
        ledger.fleet.sweep(ledger.now_ms)
        for worker_id in ledger.worker_alarms.take(ledger.now_ms, limit=_DUE_MOST):
            self._roster.silent(worker_id)
        for key in ledger.job_alarms.take(ledger.now_ms, limit=_DUE_MOST):
            job = ledger.jobs.get(key)
            if job is not None:
                self._on_due(job)

    def _on_due(self, job: Job) -> None:
        if job.result is not None:
            self._outbox.tell(job)
        elif self._ledger.is_overdue(job):
            self._outbox.expire(job)
        elif self._ledger.is_unstarted(job):
            self._on_unstarted(job)
        elif job.is_delayed:
            self._intake.begin(job)
        elif job.status is JobStatus.QUEUED:
            self._ledger.enqueue(job, save=False)
        elif job.status is JobStatus.ESCALATED:
            self._cloud.due(job)
        else:
            self._edge.due(job)

    def _on_unstarted(self, job: Job) -> None:
        """End a job that nobody has begun with in time, unless its answer is in the making."""
        if self._parts.has_begun(job) or self._coalescer.has_begun(job):
            self._ledger.put(replace(job, start_by_at_ms=None))
        else:
            self._outbox.expire(job)
