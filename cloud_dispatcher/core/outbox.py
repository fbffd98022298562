"""Results: decided once, saved, told, and told again until the broker confirms them."""

from __future__ import annotations

from msgspec.structs import replace

from cloud_dispatcher.core.commands import Reply, SaveJob, Send
from cloud_dispatcher.core.events import ResultConfirmed, ResultRefused
from cloud_dispatcher.core.job import Job, ReplyTo
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.offline import OfflineAnswers, may_stand_in, no_library
from cloud_dispatcher.core.overload import OVERLOAD, SHED
from cloud_dispatcher.core.results import as_message, kept_result, no_answer, offline_result
from cloud_dispatcher.core.retry import backoff_ms
from fleet_protocol import topics
from fleet_protocol.library import MatchKind
from fleet_protocol.messages import JobKey, JobResult, JobStatus, Reason

_RETELL_CAP_MS = 300_000
_FULL_CODE = "bus_full"
DEADLINE = "deadline"
"""The job's own time is over."""
NOT_STARTED = "not_started_in_time"
"""Nobody began with the job within the span that it gives for that."""
UNHEARD = "unheard"
"""The broker has the result, but its device was not subscribed: it may be on its way back."""


class Outbox:
    """The finished jobs of the ledger whose result was not confirmed."""

    def __init__(self, ledger: Ledger, offline: OfflineAnswers = no_library) -> None:
        self._ledger = ledger
        self._offline = offline
        self._refusals: dict[JobKey, int] = {}
        self._told_at_ms: dict[JobKey, int] = {}

    def __len__(self) -> int:
        return len(self._told_at_ms)

    def finish(self, job: Job, result: JobResult, *, dead: bool = False) -> None:
        """Give an open job its one result, save it and tell it."""
        ledger = self._ledger
        ledger.detach(job)
        job = replace(
            job,
            status=result.status,
            worker=None,
            lapsed=False,
            lease_until_ms=None,
            result=result,
            finished_at_ms=ledger.now_ms,
            dead=dead,
            told=False,
        )
        ledger.put(job)
        ledger.finished.append(job)
        if job.part is None:
            # A long text takes as long as it is long: that says nothing of the boards.
            now_ms = ledger.now_ms
            span_ms = None if job.parts else max(now_ms - job.begins_at_ms, 0)
            work_ms = 0 if job.assigned_at_ms is None else now_ms - job.assigned_at_ms
            ledger.overload.ended(result, span_ms=span_ms, work_ms=work_ms, now_ms=now_ms)
        self.tell(job)

    def fail(self, job: Job, *, code: str, message: str) -> None:
        """Let what is kept or written down be the answer, or fail for good: a dead letter."""
        self._end(job, JobStatus.FAILED, code=code, message=message)

    def expire(self, job: Job) -> None:
        """End a job whose deadline, or time to begin, has passed.

        With what is kept or written down if anything is.
        """
        self._ledger.call_off(job)
        code, message = DEADLINE, "the deadline passed before there was an answer"
        if not self._ledger.is_overdue(job):
            code, message = NOT_STARTED, "nobody had begun with it in time: see start_within_ms"
        self._end(job, JobStatus.EXPIRED, code=code, message=message)

    def shed(self, job: Job) -> None:
        """End a waiting job so that a more important one has its place in the full queue."""
        self._ledger.overload.shed += 1
        message = "a job of higher priority took its place in the full queue; submit it again later"
        self._end(job, JobStatus.FAILED, code=SHED, message=message)

    def spare(self, job: Job) -> bool:
        """Answer with what is written down, but for the default: there is no time for more."""
        written = self._offline(job.submit)
        if written is None or written.kind is MatchKind.DEFAULT:
            return False
        message, now_ms = "there is more to do than the boards can", self._ledger.now_ms
        found = offline_result(job, written, code=OVERLOAD, message=message, now_ms=now_ms)
        self.finish(job, found)
        return True

    def cancel(self, job: Job, *, message: str) -> None:
        """End a job because its answer is no longer wanted."""
        self._ledger.call_off(job)
        status, now_ms = JobStatus.CANCELLED, self._ledger.now_ms
        self.finish(job, no_answer(job, status, code="cancelled", message=message, now_ms=now_ms))

    def tell(self, job: Job) -> None:
        """Tell the device the result; the broker's word on it is awaited."""
        if job.part is not None:
            return  # It stays until its job has the result, see `Parts`.
        if job.reply.silent:
            self._let_go(job)
            return
        self._told_at_ms[job.key] = self._ledger.now_ms
        self._publish(job, job.reply, confirms=job.key)

    def replay(self, job: Job, reply: ReplyTo) -> None:
        """Tell a finished job's result again because the device asked again, the way it asked."""
        confirms = job.key if job.key in self._told_at_ms else None
        self._publish(job, reply, confirms=confirms)

    def retell(self, *, older_than_ms: int) -> None:
        """Tell all unconfirmed results again that were last told so long ago."""
        latest_ms = self._ledger.now_ms - older_than_ms
        for key in [key for key, at_ms in self._told_at_ms.items() if at_ms <= latest_ms]:
            self.tell(self._ledger.jobs[key])

    def on_confirmed(self, event: ResultConfirmed) -> None:
        """The broker has it: remember so, and let go."""
        job = self._ledger.jobs.get(event.job)
        if job is not None and job.result is not None:
            self._let_go(job)

    def on_refused(self, event: ResultRefused) -> None:
        """Tell it again later; after enough refusals it only waits in the store to be asked for."""
        ledger, settings = self._ledger, self._ledger.settings
        job = ledger.jobs.get(event.job)
        if job is None or job.result is None:
            return
        refusals = self._refusals.get(job.key, 0) + (event.code != _FULL_CODE)
        self._refusals[job.key] = refusals
        unheard = event.code == UNHEARD
        if refusals >= (settings.result_unheard_max if unheard else settings.result_tells_max):
            self._let_go(job)
            return
        pause_ms = backoff_ms(
            job.key, refusals, first_ms=settings.result_retell_ms, cap_ms=_RETELL_CAP_MS
        )
        ledger.job_alarms.set(job.key, ledger.now_ms + pause_ms)

    def forget(self, key: JobKey) -> None:
        """Wait for no confirmation of this job's result any more."""
        self._told_at_ms.pop(key, None)
        self._refusals.pop(key, None)

    def _end(self, job: Job, status: JobStatus, *, code: str, message: str) -> None:
        """Go down the last rungs: the answer that a board kept, the offline library, none."""
        now_ms, kept = self._ledger.now_ms, job.kept
        if kept is not None and job.reason is not Reason.UNSUPPORTED:
            self.finish(job, kept_result(job, kept, code=code, message=message, now_ms=now_ms))
            return
        # A part has no author who could make sense of what the library says.
        asks_library = job.part is None and may_stand_in(code)
        written = self._offline(job.submit) if asks_library else None
        # What a board kept of a job that is beyond it is only its word that it should not try.
        if kept is not None and (written is None or written.kind is MatchKind.DEFAULT):
            self.finish(job, kept_result(job, kept, code=code, message=message, now_ms=now_ms))
        elif written is not None:
            found = offline_result(job, written, code=code, message=message, now_ms=now_ms)
            # The default is a kind word, not an answer: somebody should know of it.
            self.finish(job, found, dead=written.kind is MatchKind.DEFAULT)
        else:
            none = no_answer(job, status, code=code, message=message, now_ms=now_ms)
            self.finish(job, none, dead=job.part is None)

    def _let_go(self, job: Job) -> None:
        self._ledger.emit(SaveJob(job=replace(job, told=True)))
        self._ledger.drop(job)
        self.forget(job.key)

    def _publish(self, job: Job, reply: ReplyTo, *, confirms: JobKey | None) -> None:
        if job.result is None:
            return
        message = as_message(job, job.result)
        channel = topics.ANSWER if job.reply.plain else topics.RESULT
        ids = (job.device,) if job.reply.plain else (job.device, job.id)
        self._ledger.emit(Send(channel=channel, ids=ids, message=message, confirms=confirms))
        if reply.topic is not None:
            correlation = reply.correlation_data
            self._ledger.emit(
                Reply(topic=reply.topic, message=message, correlation_data=correlation)
            )
