"""Jobs on the boards: given out under leases, fenced by attempt, given back when a board fails."""

from __future__ import annotations

from msgspec.structs import replace

from cloud_dispatcher.core.commands import Send
from cloud_dispatcher.core.ejection import NO_FAULT
from cloud_dispatcher.core.events import (
    DoneReceived,
    FailureReceived,
    ProgressReceived,
    StartReceived,
    TokensReceived,
)
from cloud_dispatcher.core.fleet import Worker
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import LEASED, Ledger
from cloud_dispatcher.core.outbox import Outbox
from cloud_dispatcher.core.results import edge_result
from cloud_dispatcher.core.retry import GiveUp, retry_edge
from fleet_protocol import topics
from fleet_protocol.messages import (
    Assignment,
    AttemptRef,
    Escalate,
    JobKey,
    JobStatus,
    Settled,
    TokenChunk,
    WorkerCancel,
    WorkerId,
)

ATTEMPT_TOO_SLOW = "attempt_too_slow"
"""An attempt made progress, but took longer than one may."""
WORKER_LOST = "worker_lost"
"""A worker was not heard of any more, or knows nothing of an attempt that it was given."""

_SCOLD_PAUSE_MS = 1_000
_SCOLDED_MOST = 4_096


class EdgeLane:
    """Assigns waiting jobs to free workers, and hears what workers say of their attempts.

    An attempt is current while the job holds its number and nobody was given a later one. A lease
    that lapsed (its worker fell silent) leaves the attempt current until the next one is given
    out: if the worker comes back in time, its work counts. Every older attempt moves nothing.
    """

    def __init__(self, ledger: Ledger, outbox: Outbox) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._scolded: dict[tuple[JobKey, int], int] = {}

    # ------------------------------------------------------------ giving out

    def assign_ready(self) -> None:
        """Give waiting jobs to free workers until one of both runs out."""
        ledger = self._ledger
        queue, fleet = ledger.queue, ledger.fleet
        if ledger.is_linked:
            queue.age(ledger.now_ms)
            while queue.has_ready and fleet.has_free and self._assign_next():
                pass

    def send_assignment(self, job: Job, worker: Worker) -> None:
        """Send a job to the holder of its lease; on (job, attempt) that is idempotent."""
        ledger, submit = self._ledger, job.submit
        lease_ms, remaining_ms = ledger.lease_ms(job), ledger.remaining_ms(job)
        tenant = ledger.budget.tenant_of(job.device)
        is_spent = bool(ledger.budget.refusal(tenant, job.payer, ledger.now_ms))
        assignment = Assignment(
            job=job.key,
            attempt=job.attempt,
            lease_ms=lease_ms,
            messages=submit.conversation,
            generation=submit.generation,
            deadline_ms=remaining_ms,
            model=submit.model,
            stream=submit.stream and not job.reply.plain,
            # A job that the cloud could not take must not bounce back to it.
            escalate=Escalate.NEVER if job.cloud_code else submit.escalate,
            privacy=submit.privacy,
            priority=submit.priority,
            cache_ttl_ms=ledger.settings.cache.span_ms(submit),
            tenant=tenant,
            cloud_away=bool(ledger.outage) or is_spent,
        )
        expiry_ms = lease_ms if remaining_ms is None else min(lease_ms, remaining_ms)
        send = Send(
            channel=topics.ASSIGN,
            ids=(worker.id,),
            message=assignment,
            expiry_ms=expiry_ms,
            joint=worker.takes_several,
        )
        ledger.emit(send)

    def _assign_next(self) -> bool:
        ledger = self._ledger
        for need, key in ledger.queue.heads(ledger.fleet.free_labels):
            job = ledger.jobs[key]
            if ledger.is_overdue(job) or ledger.is_unstarted(job):
                self._outbox.expire(job)
                return True
            kept_by = ledger.conversations.board_of(job.submit, ledger.now_ms)
            asked = ledger.fleet.policy.ask(need, job)
            worker = ledger.fleet.pick_worker(asked, avoid=job.last_worker, prefer=kept_by)
            if worker is not None:
                self._assign(job, worker)
                return True
        return False

    def _assign(self, job: Job, worker: Worker) -> None:
        ledger = self._ledger
        job = replace(
            job,
            status=JobStatus.ASSIGNED,
            attempt=job.attempt + 1,
            edge_tries=job.edge_tries + 1,
            worker=worker.id,
            lapsed=False,
            assigned_at_ms=ledger.now_ms,
            lease_until_ms=ledger.lease_until_ms(job),
            not_before_ms=0,
            first_token_at_ms=None,
        )
        ledger.grant(job, worker)
        ledger.fleet.begin(worker, job.key)
        self.send_assignment(job, worker)

    # ------------------------------------------------------------ what workers say

    def on_started(self, event: StartReceived) -> None:
        """The worker has it: from now on its progress renews the lease."""
        before = self._ledger.jobs.get(event.job)
        job = self._working(event.worker, event.job, event.attempt)
        if job is not None and before is not None and before.status is JobStatus.ASSIGNED:
            self._ledger.fleet.started(job, self._ledger.now_ms)

    def on_progress(self, event: ProgressReceived) -> None:
        """The worker still works on it."""
        self._working(event.worker, event.job, event.attempt)

    def on_tokens(self, event: TokensReceived) -> None:
        """The answer grew: pass it on to a device that wants to see it grow."""
        chunk = event.chunk
        job = self._working(event.worker, event.job, chunk.attempt)
        if job is None:
            return
        if job.first_token_at_ms is None:
            job = replace(job, first_token_at_ms=self._ledger.now_ms)
            self._ledger.put(job, save=False)
        if job.submit.stream and not job.reply.plain:
            self._ledger.send(topics.TOKENS, (job.device, job.id), TokenChunk(i=chunk.i, t=chunk.t))

    def on_done(self, event: DoneReceived) -> None:
        """The worker answered: where the attempt is current, that is the result."""
        worker, ledger = event.worker, self._ledger
        ledger.heard(worker)
        now_ms = ledger.now_ms
        for key, attempt, answer in event.answers():
            job = self.current(worker, key, attempt)
            if job is not None:
                ledger.fleet.worked(worker)
                result = edge_result(job, answer, worker=worker, now_ms=now_ms)
                ledger.fleet.answered(job, answer, now_ms)
                self._outbox.finish(job, result)
                ledger.conversations.answered(job.submit, worker, now_ms)
            self.settle(worker, key, attempt)

    def on_failure(self, event: FailureReceived) -> None:
        """The worker could not: another may, unless it says that none can."""
        failure = event.failure
        job = self.current(event.worker, event.job, failure.attempt)
        self._ledger.heard(event.worker)
        has_tried = failure.code not in NO_FAULT
        if job is not None and has_tried:
            if failure.retryable:
                self._ledger.fleet.failed(event.worker, self._ledger.now_ms)
            job = replace(job, start_by_at_ms=None)
        if job is not None and failure.retryable:
            self.give_back(job, lapsed=False, code=failure.code, message=failure.message)
        elif job is not None:
            self._outbox.fail(job, code=failure.code, message=failure.message)
        self.settle(event.worker, event.job, failure.attempt)

    # ------------------------------------------------------------ leases

    def current(self, worker: WorkerId, key: JobKey, attempt: int) -> Job | None:
        """Return the job if this attempt is its latest and was given to this worker."""
        job = self._ledger.jobs.get(key)
        if job is None or job.attempt != attempt:
            return None
        if job.status in LEASED and job.worker == worker:
            return job
        return job if self._has_lapsed(job, worker) else None

    def resume(self, worker: Worker, key: JobKey, attempt: int) -> Job | None:
        """Renew the lease of a current attempt, also of one that lapsed, if there is still room.

        Returns None for a stale attempt, and for one whose place was given away meanwhile.
        """
        job = self.current(worker.id, key, attempt)
        if job is None or job.worker is not None:
            return None if job is None else self._ledger.renew(job, JobStatus.RUNNING)
        if len(worker.leases) >= worker.capacity:
            return None
        job = replace(
            job,
            status=JobStatus.RUNNING,
            worker=worker.id,
            lapsed=False,
            lease_until_ms=self._ledger.lease_until_ms(job),
            not_before_ms=0,
            start_by_at_ms=None,
            past=tuple(over for over in job.past if over.attempt != attempt),
        )
        self._ledger.grant(job, worker)
        return job

    def give_back(self, job: Job, *, lapsed: bool, code: str = "", message: str = "") -> None:
        """Let a job wait for another attempt after a pause, or fail if there were enough.

        Args:
            job: Leased, or in the cloud lane.
            lapsed: Its worker did not say that the attempt ended, and may come back with it.
            code: What the last worker said went wrong; empty if it said nothing.
            message: The same for people.
        """
        ledger = self._ledger
        decision = retry_edge(job, ledger.settings.retry, now_ms=ledger.now_ms)
        if isinstance(decision, GiveUp):
            message = f"{message} ({decision.message})" if message else decision.message
            self._outbox.fail(job, code=code or decision.code, message=message)
            return
        ledger.detach(job)
        waiting = replace(
            job,
            status=JobStatus.QUEUED,
            worker=None,
            last_worker=job.worker or job.last_worker,
            lapsed=lapsed,
            lease_until_ms=None,
            not_before_ms=decision.at_ms,
            past=job.past_with(code or WORKER_LOST, ledger.now_ms),
        )
        ledger.enqueue(waiting)

    def due(self, job: Job) -> None:
        """Take back an attempt that was not heard of, or takes too long.

        Neither while nobody can be heard at all.
        """
        if self._ledger.is_too_slow(job):
            self._ledger.call_off(job)
            message = "the attempt took longer than it may: see attempt_ms"
            self.give_back(job, lapsed=False, code=ATTEMPT_TOO_SLOW, message=message)
        elif self._ledger.is_linked:
            if job.worker is not None:
                self._ledger.fleet.unheard(job.worker, job, self._ledger.now_ms)
            self.give_back(job, lapsed=True)
        else:
            self._ledger.renew(job, job.status)

    def settle(self, worker: WorkerId, key: JobKey, attempt: int) -> None:
        """Let a worker forget an attempt: its outcome is stored, or nobody waits for it."""
        settled = Settled(jobs=(AttemptRef(job=key, attempt=attempt),))
        self._ledger.send(topics.SETTLED, (worker,), settled)

    def scold(self, worker: WorkerId, key: JobKey, attempt: int) -> None:
        """Tell a worker to stop a stale attempt; once a second is enough."""
        now_ms = self._ledger.now_ms
        last_ms = self._scolded.get((key, attempt))
        if last_ms is not None and 0 <= now_ms - last_ms < _SCOLD_PAUSE_MS:
            return
        if len(self._scolded) >= _SCOLDED_MOST:
            self._scolded.clear()
        self._scolded[key, attempt] = now_ms
        cancel = WorkerCancel(job=key, attempt=attempt)
        self._ledger.send(topics.WORKER_CANCEL, (worker,), cancel)

    def _working(self, worker_id: WorkerId, key: JobKey, attempt: int) -> Job | None:
        worker = self._ledger.heard(worker_id)
        job = self.resume(worker, key, attempt)
        if job is None:
            self.scold(worker_id, key, attempt)
        return job

    @staticmethod
    def _has_lapsed(job: Job, worker: WorkerId) -> bool:
        return job.lapsed and job.status is JobStatus.QUEUED and job.last_worker == worker
