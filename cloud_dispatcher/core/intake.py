"""What devices say: submissions and cancellations, each answered exactly once."""

from __future__ import annotations

from heapq import nsmallest

from msgspec.structs import replace

from cloud_dispatcher.core.answers import AnswerCache
from cloud_dispatcher.core.capacity import is_known_model, route_of
from cloud_dispatcher.core.cloud_lane import CloudLane
from cloud_dispatcher.core.coalescing import Coalescer
from cloud_dispatcher.core.commands import Reply
from cloud_dispatcher.core.events import JobCancelled, JobSubmitted, SubmissionMalformed
from cloud_dispatcher.core.job import Job, ReplyTo
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.outbox import Outbox
from cloud_dispatcher.core.parts import Parts
from cloud_dispatcher.core.rate_limits import RateLimits
from cloud_dispatcher.core.results import cached_result, spoken_refusal
from cloud_dispatcher.core.retry import spread
from fleet_protocol import topics
from fleet_protocol.messages import (
    AckStatus,
    DeviceId,
    Escalate,
    JobAck,
    JobId,
    JobStatus,
    JobSubmit,
    PlainText,
    Privacy,
    RateOf,
    Reason,
)
from fleet_protocol.routing import EscalateTo, Refuse

_NAMES_SHOWN = 10
_NOTE_MOST = 2_000


class Intake:
    """Takes jobs in, or says why not. The same id again is the same job."""

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        cloud: CloudLane,
        *,
        answers: AnswerCache,
        coalescer: Coalescer,
        parts: Parts,
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._cloud = cloud
        self._answers = answers
        self._coalescer = coalescer
        self._parts = parts
        settings = ledger.settings
        self._rates = RateLimits(settings.rate, settings.budget.tenants)

    def on_submitted(self, event: JobSubmitted) -> None:
        """A device asked: a new job, or one that is known."""
        known = self._ledger.find(event.device, event.id) or event.known
        if known is not None:
            self._repeat(known, event.reply)
            return
        job = self._job_of(event)
        is_delayed = job.submit.not_before_ms is not None
        excess = self._excess(event)
        may_know = excess is None and not is_delayed
        answer = self._answers.find(job, event.answer) if may_know else None
        refusal = excess or (None if answer is not None else self._refusal(event))
        if refusal is not None:
            self._reject(event.device, event.id, event.reply, refusal)
            return
        self._count(event)
        self._acknowledge(job)
        if is_delayed:
            self._ledger.put(replace(job, not_before_ms=job.begins_at_ms))
        elif answer is not None:
            now_ms = self._ledger.now_ms
            self._outbox.finish(job, cached_result(job, answer, now_ms=now_ms))
        elif not (self._ledger.overload.spares(job.submit.priority) and self._outbox.spare(job)):
            self.admit(job)

    def begin(self, job: Job) -> None:
        """A delayed job's time has come: from now on it is like any other."""
        ledger = self._ledger
        ledger.detach(job)
        job = replace(job, not_before_ms=0)
        answer = self._answers.find(job, None)
        if answer is not None:
            self._outbox.finish(job, cached_result(job, answer, now_ms=ledger.now_ms))
        else:
            self.admit(job)

    def on_malformed(self, event: SubmissionMalformed) -> None:
        """A submission could not be read."""
        ack = _rejected(event.code, event.message)
        self._reject(event.device, event.id, event.reply, ack)

    def on_cancelled(self, event: JobCancelled) -> None:
        """A device no longer wants the answer. Too late: it gets the result again."""
        job = self._ledger.find(event.device, event.id) or event.known
        if job is None:
            ack = _rejected("unknown_job", "there is no job of this id to cancel")
            self._ledger.send(topics.ACK, (event.device, event.id), ack)
        elif not job.is_open:
            self._outbox.replay(job, job.reply)
        elif job.key in self._ledger.jobs:
            self._outbox.cancel(job, message="the device cancelled the job")

    def _repeat(self, job: Job, reply: ReplyTo) -> None:
        """Answer a submission of a known job: accepted (again), and the result if there is one."""
        if not job.reply.plain:
            waiting = job.key in self._ledger.queue
            position = self._ledger.queue.ahead_of(job.submit.priority) - 1 if waiting else 0
            ack = JobAck(status=AckStatus.ACCEPTED, position=max(position, 0))
            self._ledger.send(topics.ACK, (job.device, job.id), ack)
        if not job.is_open:
            self._outbox.replay(job, reply)

    def _excess(self, event: JobSubmitted) -> JobAck | None:
        """Refuse what is more than its device, or its tenant, may bring."""
        if not self._rates.are_set or event.reply.silent:
            return None
        tenant = self._ledger.budget.tenant_of(event.device)
        excess = self._rates.excess(event.device, tenant, self._ledger.now_ms)
        if excess is None:
            return None
        who = "this device" if excess.of is RateOf.DEVICE else f"the tenant {tenant}"
        message = f"{who} may bring {excess.per_s:g} new jobs a second"
        return replace(self._busy(message, retry_after_ms=excess.wait_ms), rate=excess.of)

    def _count(self, event: JobSubmitted) -> None:
        if self._rates.are_set and not event.reply.silent:
            tenant = self._ledger.budget.tenant_of(event.device)
            self._rates.count(event.device, tenant, self._ledger.now_ms)

    def _refusal(self, event: JobSubmitted) -> JobAck | None:
        ledger, submit = self._ledger, event.submit
        cloud_wanted = submit.escalate is Escalate.ALWAYS and submit.privacy is Privacy.ANY
        unserved = None if cloud_wanted else self._unserved(submit)
        if unserved is not None:
            return unserved
        settings = ledger.settings
        if ledger.overload.refuses(submit.priority):
            return self._busy(
                f"there is too much to do for priority {submit.priority}",
                retry_after_ms=spread(event.key, settings.overload.retry_ms),
            )
        wait_ms = 2 * spread(event.key, settings.busy_retry_ms)
        if submit.not_before_ms is not None:
            is_full = ledger.delayed >= settings.delayed_limit
            message = f"{settings.delayed_limit} jobs are put off already"
            return self._busy(message, retry_after_ms=wait_ms) if is_full else None
        is_full = ledger.counts[JobStatus.QUEUED] - ledger.delayed >= settings.queue_limit
        if is_full and not self._made_way(submit.priority):
            return self._busy("the queue is full", retry_after_ms=wait_ms)
        return None

    def _unserved(self, submit: JobSubmit) -> JobAck | None:
        """Refuse what no worker that is known, away or not, could ever answer."""
        fleet, label = self._ledger.fleet, submit.label
        contexts = fleet.contexts_of(label)
        if fleet.contexts and not contexts:
            known = ", ".join(nsmallest(_NAMES_SHOWN, fleet.labels)) or "none"
            message = f"no worker has the label {label!r}; known are {known}"
            return _rejected("unknown_label", message)
        if not is_known_model(submit, contexts):
            known = ", ".join(sorted(name for name in contexts if name)[:_NAMES_SHOWN])
            who = "no worker" if label is None else f"no worker with the label {label!r}"
            return _rejected("unknown_model", f"{who} has {submit.model!r}; known are {known}")
        return None

    def _made_way(self, priority: int) -> bool:
        """Let a waiting job of lower priority go, so that a more important one has its place."""
        key = self._ledger.queue.least(below=priority)
        if key is None:
            return False
        job = self._ledger.jobs[key]
        # A long text without one of its parts has no answer: it makes way as a whole.
        self._outbox.shed(job if job.part is None else self._ledger.jobs[job.part.job])
        return True

    def _busy(self, message: str, *, retry_after_ms: int) -> JobAck:
        self._ledger.overload.refused += 1
        return _rejected("busy", message, retry_after_ms=retry_after_ms)

    def _job_of(self, event: JobSubmitted) -> Job:
        now_ms = self._ledger.now_ms
        return Job(
            key=event.key,
            device=event.device,
            id=event.id,
            submit=event.submit,
            received_at_ms=now_ms,
            deadline_at_ms=now_ms + self._ledger.span_ms(event.submit),
            start_by_at_ms=self._ledger.start_by_at_ms(event.submit),
            reply=event.reply,
            answer_key=self._answers.key_of(event.device, event.submit),
            payer=event.payer,
        )

    def _acknowledge(self, job: Job) -> None:
        if not (job.reply.plain or job.reply.silent):
            position = self._ledger.queue.ahead_of(job.submit.priority)
            ack = JobAck(status=AckStatus.ACCEPTED, position=position)
            self._ledger.send(topics.ACK, (job.device, job.id), ack)

    def admit(self, job: Job) -> None:
        """Let a job wait for an equal one that is open, or find a place for it."""
        if not self._coalescer.follows(job):
            self.place(job)

    def place(self, job: Job) -> None:
        """Let a job, or its parts, wait for a board, or go where no board can have it."""
        parts = self._parts.begin(job)
        if parts:
            for part in parts:
                self.place(part)
            return
        route = route_of(job.submit, self._ledger.fleet.contexts_of(job.submit.label))
        if isinstance(route, EscalateTo):
            self._cloud.send_up(job, route.reason, route.detail)
            return
        if isinstance(route, Refuse):
            job = replace(job, reason=route.reason, detail=route.detail)
            self._outbox.fail(job, code=route.reason.value, message=route.detail)
            return
        if job.submit.escalate is Escalate.ALWAYS:
            job = replace(
                job,
                reason=Reason.REQUESTED,
                cloud_code="privacy_site",
                cloud_message="the prompt may not leave its site, so a board answered",
            )
        self._ledger.enqueue(job)

    def _reject(self, device: DeviceId, job_id: JobId, reply: ReplyTo, ack: JobAck) -> None:
        if reply.silent:
            return
        if reply.plain:
            self._ledger.send(topics.ANSWER, (device,), PlainText(text=spoken_refusal(ack)))
            return
        self._ledger.send(topics.ACK, (device, job_id), ack)
        if reply.topic is not None:
            correlation = reply.correlation_data
            self._ledger.emit(Reply(topic=reply.topic, message=ack, correlation_data=correlation))


def _rejected(code: str, message: str, *, retry_after_ms: int = 0) -> JobAck:
    return JobAck(
        status=AckStatus.REJECTED,
        code=code[:64],
        message=message[:_NOTE_MOST],
        retry_after_ms=retry_after_ms,
    )
