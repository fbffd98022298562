"""The engine's whole state, and the decisions of the turn at hand."""

from __future__ import annotations

from typing import TypeAlias

from msgspec.structs import replace

from cloud_dispatcher.core.alarms import Alarms
from cloud_dispatcher.core.commands import AnyCommand, SaveJob, Send, StopCompletion
from cloud_dispatcher.core.conversations import Conversations
from cloud_dispatcher.core.fleet import Fleet, Worker
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.outage import Outage
from cloud_dispatcher.core.overload import Overload
from cloud_dispatcher.core.queue import JobQueue
from cloud_dispatcher.core.scheduler import Policy
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import Budget
from fleet_protocol import topics
from fleet_protocol.messages import (
    Defer,
    DeviceId,
    JobId,
    JobKey,
    JobStatus,
    JobSubmit,
    Message,
    WorkerCancel,
    WorkerId,
)
from fleet_protocol.topics import Channel

Name: TypeAlias = tuple[DeviceId, JobId]

LEASED = frozenset({JobStatus.ASSIGNED, JobStatus.RUNNING})


class Ledger:
    """Open jobs, results not yet told, the queue, the fleet and what is due when.

    The parts of the engine share one ledger and change state through it alone, so that every
    saved value, queue entry, lease count and alarm moves together.

    Attributes:
        jobs: By key: open ones, and finished ones whose result was not confirmed.
        counts: Jobs here by status.
        delayed: Of those queued the ones that their devices want later; they are not in the queue.
        chunks: Pieces of a cloud answer passed on so far, for jobs that were escalated.
        finished: Jobs that got their result in this turn.
        conversations: Which board answered what lately.
        budget: What was spent on the cloud today, and who may spend more.
        overload: Whether there is too much to do.
        outage: Whether nobody in the cloud can be asked.
        is_linked: Whether the broker can be reached; while it cannot, silence means nothing.
        linked_at_ms: When the broker was there (again), or this run began.
        began_at_ms: When this run of the dispatcher took up its jobs; None: it did not yet.
        members: Dispatchers that share the fleet; 0: there is only this one.
        now_ms: Of this turn.
    """

    def __init__(self, settings: EngineSettings, policy: Policy, *, has_cloud: bool = True) -> None:
        self.settings = settings
        self.jobs: dict[JobKey, Job] = {}
        self.counts: dict[JobStatus, int] = dict.fromkeys(JobStatus, 0)
        self.delayed = 0
        self.chunks: dict[JobKey, int] = {}
        self.finished: list[Job] = []
        self.queue = JobQueue(settings.ageing_ms)
        self.fleet = Fleet(settings.weight, policy, settings.ejection)
        self.conversations = Conversations(settings.conversations)
        self.budget = Budget(settings.budget)
        self.overload = Overload(settings.overload)
        self.outage = Outage(has_cloud=has_cloud)
        self.job_alarms: Alarms[JobKey] = Alarms()
        self.worker_alarms: Alarms[WorkerId] = Alarms()
        self.is_linked = True
        self.members = 0
        self.began_at_ms: int | None = None
        self.linked_at_ms = 0
        self.now_ms = 0
        self._keys: dict[Name, JobKey] = {}
        self._commands: list[AnyCommand] = []

    def take_commands(self) -> list[AnyCommand]:
        """Return what this turn decided, in order, and start afresh."""
        commands, self._commands = self._commands, []
        return commands

    def emit(self, command: AnyCommand) -> None:
        """Add a decision to this turn."""
        self._commands.append(command)

    def send(
        self, channel: Channel, ids: tuple[str, ...], message: Message, expiry_ms: int | None = None
    ) -> None:
        """Decide to publish a message that nobody has to confirm."""
        self._commands.append(Send(channel=channel, ids=ids, message=message, expiry_ms=expiry_ms))

    def find(self, device: DeviceId, job_id: JobId) -> Job | None:
        """Return the job of this name, if it is here."""
        key = self._keys.get((device, job_id))
        return None if key is None else self.jobs[key]

    def put(self, job: Job, *, save: bool = True) -> None:
        """Let this be the value of the job, here and (if `save`) in the store."""
        key, counts = job.key, self.counts
        old = self.jobs.get(key)
        if old is None:
            self._keys[job.device, job.id] = key
        else:
            counts[old.status] -= 1
        counts[job.status] += 1
        if job.submit.not_before_ms is not None:
            self.delayed += job.is_delayed - (old is not None and old.is_delayed)
        self.jobs[key] = job
        due_ms = self._due_at_ms(job)
        if due_ms is None:
            self.job_alarms.clear(key)
        else:
            self.job_alarms.set(key, due_ms)
        if save:
            self._commands.append(SaveJob(job=job))

    def drop(self, job: Job) -> None:
        """Forget a finished job: its result was told."""
        del self.jobs[job.key]
        del self._keys[job.device, job.id]
        self.counts[job.status] -= 1
        self.chunks.pop(job.key, None)
        self.job_alarms.clear(job.key)

    def enqueue(self, job: Job, *, save: bool = True) -> None:
        """Let a job with status `queued` wait for a slot."""
        self.put(job, save=save)
        tenant = self.budget.tenant_of(job.device)
        self.queue.add(job, now_ms=self.now_ms, tenant=tenant)

    def grant(self, job: Job, worker: Worker, *, save: bool = True) -> None:
        """Let a worker hold a job whose value already says so."""
        self.queue.take(job.key, now_ms=self.now_ms)
        self.fleet.lease(worker, job.key, self.now_ms)
        self.put(job, save=save)

    def renew(self, job: Job, status: JobStatus) -> Job:
        """Return the job with its lease renewed.

        Not saved, for a lease starts afresh on recovery; but that somebody has begun is, where
        that was to be within a span.
        """
        begins = status is JobStatus.RUNNING and job.start_by_at_ms is not None
        start_by_at_ms = None if begins else job.start_by_at_ms
        job = replace(
            job,
            status=status,
            lease_until_ms=self.lease_until_ms(job),
            start_by_at_ms=start_by_at_ms,
        )
        self.put(job, save=begins)
        return job

    def detach(self, job: Job) -> None:
        """Take a job out of wherever it waits or runs, before it goes elsewhere."""
        if job.worker is not None:
            self.fleet.release(job.worker, job.key)
        elif job.status is JobStatus.QUEUED:
            self.queue.remove(job.key)

    def call_off(self, job: Job) -> None:
        """Tell whoever works on a job that the answer is no longer wanted."""
        if job.status in LEASED and job.worker is not None:
            cancel = WorkerCancel(job=job.key, attempt=job.attempt)
            self.send(topics.WORKER_CANCEL, (job.worker,), cancel)
        elif job.status is JobStatus.ESCALATED:
            self.emit(StopCompletion(job=job.key))

    def heard(self, worker_id: WorkerId) -> Worker:
        """Return a worker that gave a sign of life just now."""
        worker = self.fleet.see(worker_id, self.now_ms)
        self.worker_alarms.set(worker_id, self.now_ms + self.settings.worker_silence_ms)
        return worker

    def span_ms(self, submit: JobSubmit) -> int:
        """Return how long after now a submission is worth an answer."""
        settings = self.settings
        can_wait = submit.defer is Defer.OFFPEAK
        own_ms = settings.deferred_deadline_ms if can_wait else settings.default_deadline_ms
        return submit.deadline_ms or own_ms + (submit.not_before_ms or 0)

    def start_by_at_ms(self, submit: JobSubmit) -> int | None:
        """Return when somebody must have begun with what is submitted now; None: at any time."""
        span_ms = submit.start_within_ms or self.settings.default_start_within_ms
        return None if span_ms is None else self.now_ms + (submit.not_before_ms or 0) + span_ms

    def lease_ms(self, job: Job) -> int:
        """Return the span within which the holder of a lease must be heard of."""
        return job.submit.lease_ms or self.settings.lease_ms

    def lease_until_ms(self, job: Job) -> int:
        """Return when a lease that begins now is over."""
        return self.now_ms + self.lease_ms(job)

    def attempt_ms(self, job: Job) -> int | None:
        """Return the longest that an attempt may take; None: any time."""
        return job.submit.attempt_ms or self.settings.default_attempt_ms

    def is_overdue(self, job: Job) -> bool:
        """Whether the deadline has passed."""
        return job.deadline_at_ms is not None and job.deadline_at_ms <= self.now_ms

    def is_unstarted(self, job: Job) -> bool:
        """Whether nobody has begun with a job that somebody should have by now."""
        if job.start_by_at_ms is None or job.lease_until_ms is not None:
            return False
        return job.start_by_at_ms <= self.now_ms

    def is_too_slow(self, job: Job) -> bool:
        """Whether the attempt under way takes longer than it may."""
        over_ms = self._attempt_over_ms(job)
        return over_ms is not None and over_ms <= self.now_ms

    def remaining_ms(self, job: Job) -> int | None:
        """Return the span left until the deadline, at least 1; None: there is none."""
        if job.deadline_at_ms is None:
            return None
        return max(job.deadline_at_ms - self.now_ms, 1)

    def _due_at_ms(self, job: Job) -> int | None:
        if job.result is not None:
            return None
        due_ms = job.deadline_at_ms
        own_ms, other_ms = job.lease_until_ms, job.start_by_at_ms
        if own_ms is None:
            own_ms = job.not_before_ms if job.not_before_ms > self.now_ms else None
        else:
            has_span = job.submit.attempt_ms or self.settings.default_attempt_ms
            other_ms = self._attempt_over_ms(job) if has_span else None
        if own_ms is not None and (due_ms is None or own_ms < due_ms):
            due_ms = own_ms
        if other_ms is not None and (due_ms is None or other_ms < due_ms):
            due_ms = other_ms
        return due_ms

    def _attempt_over_ms(self, job: Job) -> int | None:
        """Return when a board's attempt is called off as too slow; None: it is not.

        Not while nobody can be told, and not before what was ready meanwhile could arrive.
        """
        span_ms = self.attempt_ms(job)
        if span_ms is None or job.worker is None or job.assigned_at_ms is None:
            return None
        heard_ms = self.linked_at_ms + self.settings.held_grace_ms
        return max(job.assigned_at_ms + span_ms, heard_ms) if self.is_linked else None
