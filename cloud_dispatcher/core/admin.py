"""What operators ask of the dispatcher."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec
from msgspec.structs import replace

from cloud_dispatcher.core.answers import AnswerCache
from cloud_dispatcher.core.events import AdminAsked
from cloud_dispatcher.core.exchange import Exchange
from cloud_dispatcher.core.intake import Intake
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.outbox import Outbox
from fleet_protocol import topics
from fleet_protocol.messages import (
    AdminOp,
    AdminReply,
    AdminRequest,
    JobKey,
    JobStatus,
    JobView,
    WorkerCommand,
    WorkerId,
    WorkerOp,
    WorkerView,
)
from fleet_protocol.roles import as_seen_by

_PAGE_BYTES: Final = AdminReply.MAX_BYTES // 4
"""Of workers in one reply: about a thousand, whatever they say of themselves."""
_WORKER_OPS: Final = {
    AdminOp.WORKER_DRAIN: WorkerOp.DRAIN,
    AdminOp.WORKER_RESUME: WorkerOp.RESUME,
    AdminOp.WORKER_RELOAD: WorkerOp.RELOAD,
}


class AdminDesk:
    """Answers every request but `jobs.ls`, which is the store's: those events are ignored."""

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        intake: Intake,
        answers: AnswerCache,
        exchange: Exchange,
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._intake = intake
        self._answers = answers
        self._exchange = exchange

    def on_asked(self, event: AdminAsked) -> None:
        """Do what was asked and say what came of it."""
        request = event.request
        if request.op is AdminOp.JOBS_LIST:
            return
        if request.op is AdminOp.WORKERS_LIST:
            reply = self._workers(request)
        elif request.op in {AdminOp.JOB_SHOW, AdminOp.JOB_CANCEL, AdminOp.JOB_RETRY}:
            reply = self._on_job(request, event.found)
        elif request.op in {AdminOp.CACHE_CLEAR, AdminOp.CACHE_PREWARM}:
            reply = self._on_cache(request)
        else:
            reply = self._on_worker(request)
        reply = as_seen_by(event.role, reply)
        self._ledger.send(topics.REPLIES[event.role], (event.admin,), reply)

    def _workers(self, request: AdminRequest) -> AdminReply:
        """List workers by name, as many as fit into one message."""
        page, room_bytes, go_on = list[WorkerView](), _PAGE_BYTES, None
        for worker in sorted(self._exchange.our_workers(), key=attrgetter("id")):
            if request.after is not None and worker.id <= request.after:
                continue
            if room_bytes <= 0 or len(page) >= request.limit:
                go_on = page[-1].worker
                break
            page.append(worker.view())
            room_bytes -= len(msgspec.json.encode(page[-1]))
        members = self._ledger.members
        return AdminReply(
            req=request.req, ok=True, workers=tuple(page), members=members, go_on=go_on
        )

    def _on_job(self, request: AdminRequest, found: Job | None) -> AdminReply:
        if request.job is not None:
            found = self._ledger.jobs.get(JobKey(request.job), found)
        if found is None:
            return _refused(request, "unknown_job", f"there is no job {request.job!r}")
        if request.op is AdminOp.JOB_CANCEL:
            return self._cancel(request, found)
        if request.op is AdminOp.JOB_RETRY:
            return self._retry(request, found)
        return AdminReply(req=request.req, ok=True, jobs=(view_of(found),))

    def _cancel(self, request: AdminRequest, job: Job) -> AdminReply:
        if job.key not in self._ledger.jobs or not job.is_open:
            return _refused(request, "job_finished", f"the job is {job.status.value} already")
        self._outbox.cancel(job, message="an operator cancelled the job")
        job = self._ledger.jobs.get(job.key, job)
        return AdminReply(req=request.req, ok=True, message="cancelled", jobs=(view_of(job),))

    def _retry(self, request: AdminRequest, job: Job) -> AdminReply:
        """Let a job that ended without an answer start over; attempts go on counting."""
        if job.is_open:
            return _refused(request, "job_open", f"the job is {job.status.value}, nothing to retry")
        if job.status is JobStatus.OK and not job.dead:
            return _refused(request, "job_answered", "the job has its answer; submit a new one")
        if job.part is not None:
            message = f"it is a part of the job {job.part.job}: retry that one"
            return _refused(request, "part_of_a_job", message)
        now_ms, submit = self._ledger.now_ms, job.submit
        span_ms = self._ledger.span_ms(submit)
        self._outbox.forget(job.key)
        again = Job(
            key=job.key,
            device=job.device,
            id=job.id,
            submit=submit,
            received_at_ms=job.received_at_ms,
            deadline_at_ms=now_ms + span_ms,
            start_by_at_ms=self._ledger.start_by_at_ms(submit),
            reply=replace(job.reply, topic=None, correlation_data=None),
            attempt=job.attempt,
            answer_key=job.answer_key,
            parts=job.parts,
            payer=job.payer,
            past=job.past,
        )
        self._intake.admit(again)
        again = self._ledger.jobs[job.key]
        return AdminReply(req=request.req, ok=True, message="queued anew", jobs=(view_of(again),))

    def _on_cache(self, request: AdminRequest) -> AdminReply:
        if not self._ledger.settings.cache.enabled:
            return _refused(request, "cache_off", "the answer cache is off: [engine.cache] enabled")
        if request.op is AdminOp.CACHE_CLEAR:
            self._answers.clear()
            forget = WorkerCommand(id=request.req, op=WorkerOp.FORGET_ANSWERS)
            for worker in self._ledger.fleet.workers:
                self._ledger.send(topics.COMMAND, (worker.id,), forget)
            return AdminReply(req=request.req, ok=True, message="cleared, and the boards told to")
        kept = [self._answers.prewarm(answer, request.tenant) for answer in request.answers]
        message = f"{sum(kept)} kept, {len(kept) - sum(kept)} that no job would be given"
        return AdminReply(req=request.req, ok=True, message=message, kept=tuple(kept))

    def _on_worker(self, request: AdminRequest) -> AdminReply:
        fleet = self._ledger.fleet
        worker = None if request.worker is None else fleet.find(WorkerId(request.worker))
        if worker is None:
            return _refused(request, "unknown_worker", f"there is no worker {request.worker!r}")
        op = _WORKER_OPS.get(request.op)
        if op is None:
            return AdminReply(req=request.req, ok=True, workers=(worker.view(),))
        if op is not WorkerOp.RELOAD:
            fleet.hold_back(worker, held=op is WorkerOp.DRAIN)
        self._ledger.send(topics.COMMAND, (worker.id,), WorkerCommand(id=request.req, op=op))
        message = f"told {worker.id} to {op.value}"
        return AdminReply(req=request.req, ok=True, message=message, workers=(worker.view(),))


def view_of(job: Job) -> JobView:
    """Return a job as an operator sees it: everything but the prompt."""
    return JobView(
        job=job.key,
        device=job.device,
        id=job.id,
        status=job.status,
        priority=job.submit.priority,
        prompt_chars=job.submit.prompt_chars,
        received_at_ms=job.received_at_ms,
        finished_at_ms=job.finished_at_ms,
        deadline_at_ms=job.deadline_at_ms,
        attempts=job.attempt,
        worker=job.worker or (job.result.worker if job.result else None),
        dead=job.dead,
        parts=job.parts,
        part_of=None if job.part is None else job.part.job,
        assigned_at_ms=job.assigned_at_ms,
        past=job.past,
        result=job.result,
    )


def _refused(request: AdminRequest, code: str, message: str) -> AdminReply:
    return AdminReply(req=request.req, ok=False, code=code, message=message)
