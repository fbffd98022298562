"""Jobs in the cloud: what a board hands up, what asks for it, what fits no board."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from zlib import crc32

from msgspec.structs import asdict, replace

from cloud_dispatcher.core.capacity import fits_edge
from cloud_dispatcher.core.commands import (
    CompletionRequest,
    RecordSpend,
    StartCompletion,
    StopCompletion,
)
from cloud_dispatcher.core.edge_lane import EdgeLane
from cloud_dispatcher.core.events import (
    CompletionFailed,
    CompletionFinished,
    CompletionGrew,
    EscalationReceived,
)
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.outage import PROVIDER_OPEN
from cloud_dispatcher.core.outbox import Outbox
from cloud_dispatcher.core.results import cloud_result
from cloud_dispatcher.core.retry import RetryAt, retry_cloud
from cloud_dispatcher.core.spending import NO_TENANT, Spend, day_of
from fleet_protocol import topics
from fleet_protocol.messages import Defer, Escalate, JobKey, JobStatus, Privacy, Reason, TokenChunk

_ELSEWHERE = frozenset({Reason.OVERHEATED, Reason.TOO_SLOW, Reason.LOCAL_ERROR})
"""Reasons of one board: another one may well answer."""

_FALLS_BACK = _ELSEWHERE | {Reason.REQUESTED, Reason.COMPLEX, Reason.LOW_CONFIDENCE}
"""Reasons that leave a board able to answer, if not as well as was hoped."""


BUDGET_SPENT = "budget_spent"
"""Nothing more may be spent today."""
_WORTH_WAITING_MS = 2_000
"""A second-best answer now is worth more than a better one after a longer pause than this."""


Tariff: TypeAlias = Callable[[int], int]
"""From an instant to the first one, from there on, at which the cloud costs no more than usual: the
instant itself, or when the peak ends. Pure; in UTC epoch ms."""


def always_cheap(now_ms: int) -> int:
    """Know of no peak."""
    return now_ms


class CloudLane:
    """Starts provider calls and goes down the ladder when they fail.

    The ladder: another call if the provider invites one, the answer that a board kept, a board
    once more (its answer marked degraded), the offline library, a failure with the provider's own
    code.
    """

    def __init__(
        self, ledger: Ledger, outbox: Outbox, edge: EdgeLane, tariff: Tariff = always_cheap
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._edge = edge
        self._tariff = tariff

    def on_escalation(self, event: EscalationReceived) -> None:
        """A worker hands a job up."""
        said = event.escalation
        job = self._edge.current(event.worker, event.job, said.attempt)
        self._ledger.heard(event.worker)
        if job is not None:
            self._take_over(job, event)
        self._edge.settle(event.worker, event.job, said.attempt)

    def send_up(self, job: Job, reason: Reason, detail: str) -> None:
        """Take a job that may leave the site into the lane."""
        self._ledger.detach(job)
        self.call(replace(job, worker=None, lapsed=False, reason=reason, detail=detail))

    def call(self, job: Job) -> None:
        """Ask the provider chain, under a new attempt, if hour and budget allow."""
        ledger = self._ledger
        cheap_at_ms = self._cheap_at_ms(job)
        if cheap_at_ms > ledger.now_ms:
            waiting = replace(job, lease_until_ms=None, not_before_ms=cheap_at_ms)
            ledger.put(replace(waiting, status=JobStatus.ESCALATED))
            return
        tenant = ledger.budget.tenant_of(job.device)
        refusal = ledger.budget.refusal(tenant, job.payer, ledger.now_ms)
        if refusal:
            self.do_without(job, code=BUDGET_SPENT, message=refusal)
            return
        limits_ms = (ledger.remaining_ms(job), ledger.attempt_ms(job))
        timeout_ms = ledger.settings.cloud_timeout_ms
        timeout_ms = min([timeout_ms, *(limit for limit in limits_ms if limit is not None)])
        job = replace(
            job,
            status=JobStatus.ESCALATED,
            attempt=job.attempt + 1,
            cloud_tries=job.cloud_tries + 1,
            lease_until_ms=ledger.now_ms + timeout_ms + ledger.settings.cloud_grace_ms,
            not_before_ms=0,
            first_token_at_ms=None,
        )
        ledger.chunks[job.key] = 0
        ledger.put(job)
        request = CompletionRequest.of(
            job, timeout_ms=timeout_ms, tenant="" if tenant == NO_TENANT else tenant
        )
        streams = job.submit.stream and not job.reply.plain
        ledger.emit(StartCompletion(request=request, stream=streams))

    def on_grew(self, event: CompletionGrew) -> None:
        """The provider streamed text: pass it on to a device that wants to see it grow."""
        job = self._current(event.job, event.attempt)
        if job is None:
            return
        if job.first_token_at_ms is None:
            job = replace(job, first_token_at_ms=self._ledger.now_ms)
            self._ledger.put(job, save=False)
        if job.submit.stream and not job.reply.plain:
            number = self._ledger.chunks[job.key]
            self._ledger.chunks[job.key] = number + 1
            chunk = TokenChunk(i=number, t=event.text)
            self._ledger.send(topics.TOKENS, (job.device, job.id), chunk)

    def on_finished(self, event: CompletionFinished) -> None:
        """The provider answered."""
        self._record(event)
        self._ledger.outage.answered()
        job = self._current(event.job, event.attempt)
        if job is not None:
            self._outbox.finish(job, cloud_result(job, event, now_ms=self._ledger.now_ms))

    def on_failed(self, event: CompletionFailed) -> None:
        """No provider answered."""
        if event.cost_usd:
            self._record(event)
        ledger, wait_ms = self._ledger, event.retry_after_ms
        ledger.outage.failed(event.code, ledger.now_ms)
        job = self._current(event.job, event.attempt)
        if job is None:
            return
        away_ms = ledger.outage.lasts_ms(ledger.now_ms)
        if event.code == PROVIDER_OPEN:
            # Where no board was ever heard of, a job given to one waits for its deadline.
            is_better_now = self._has_second_best(job) and (job.kept or ledger.fleet.contexts)
            if max(wait_ms or 0, away_ms) > _WORTH_WAITING_MS and is_better_now:
                self.do_without(job, code=event.code, message=event.message)
                return
            job = replace(job, cloud_tries=job.cloud_tries - 1)  # nobody was asked
        else:
            job = replace(job, start_by_at_ms=None)
        decision = retry_cloud(
            job,
            ledger.settings.retry,
            retry_after_ms=wait_ms,
            away_ms=away_ms,
            now_ms=ledger.now_ms,
        )
        if isinstance(decision, RetryAt):
            past = job.past_with(event.code, ledger.now_ms)
            at_ms = decision.at_ms
            ledger.put(replace(job, lease_until_ms=None, not_before_ms=at_ms, past=past))
        else:
            self.do_without(job, code=event.code, message=event.message)

    def due(self, job: Job) -> None:
        """Make the call whose pause is over, or give up one that never came back."""
        if job.lease_until_ms is None:
            self.call(job)
            return
        self._ledger.emit(StopCompletion(job=job.key))
        self.do_without(job, code="provider_timeout", message="the provider did not answer in time")

    def do_without(self, job: Job, *, code: str, message: str) -> None:
        """Go down the ladder from the cloud."""
        job = replace(job, cloud_code=code, cloud_message=message)
        if job.kept is None and self._has_second_best(job) and not self._is_boardless:
            self._edge.give_back(job, lapsed=False, code=code, message=message)
        else:
            self._outbox.fail(job, code=code, message=message)

    @property
    def _is_boardless(self) -> bool:
        """Whether no board was heard of since the start, as long as one is waited for.

        A job given to the boards there would only wait for its deadline.
        """
        ledger = self._ledger
        if ledger.fleet.contexts or ledger.began_at_ms is None:
            return False
        return ledger.now_ms - ledger.began_at_ms >= ledger.settings.retry.cloud_wait_cap_ms

    def _has_second_best(self, job: Job) -> bool:
        """Whether a board kept an answer, or could give one."""
        contexts = self._ledger.fleet.contexts_of(job.submit.label)
        can_fall_back = job.reason in _FALLS_BACK
        return job.kept is not None or (can_fall_back and fits_edge(job.submit, contexts))

    def _cheap_at_ms(self, job: Job) -> int:
        """Return when to ask: now, unless the job may wait for a cheaper hour and has the time."""
        ledger, now_ms = self._ledger, self._ledger.now_ms
        if job.submit.defer is not Defer.OFFPEAK:
            return now_ms
        cheap_at_ms = self._tariff(now_ms)
        if cheap_at_ms <= now_ms:
            return now_ms
        # What waited for the same hour must not come all at once.
        cheap_at_ms += crc32(job.key.encode()) % ledger.settings.deferred_spread_ms
        latest_ms = cheap_at_ms + ledger.settings.cloud_timeout_ms
        too_late = job.deadline_at_ms is not None and latest_ms >= job.deadline_at_ms
        too_late |= job.start_by_at_ms is not None and cheap_at_ms >= job.start_by_at_ms
        return now_ms if too_late else cheap_at_ms

    def _record(self, event: CompletionFinished | CompletionFailed) -> None:
        """Put a call on the bill, also where its job went on without it."""
        ledger = self._ledger
        job = ledger.jobs.get(event.job)
        if job is None:
            return
        spend = Spend(
            day=day_of(ledger.now_ms),
            tenant=ledger.budget.tenant_of(job.device),
            reason=str(job.reason or "unknown"),
            key="" if job.payer is None else job.payer.key,
            cost_usd=event.cost_usd,
        )
        if isinstance(event, CompletionFinished):
            if event.shared:
                return
            answer = {"provider": event.provider, "model": event.model}
            spend = replace(spend, **answer, **asdict(event.usage))
        ledger.budget.record((spend,), ledger.now_ms)
        ledger.emit(RecordSpend(spend=spend))

    def _take_over(self, job: Job, event: EscalationReceived) -> None:
        said, submit = event.escalation, job.submit
        self._ledger.detach(job)
        job = replace(
            job,
            worker=None,
            last_worker=event.worker,
            lapsed=False,
            kept=said.answer or job.kept,
            lease_until_ms=None,
            start_by_at_ms=None,
            past=job.past_with(said.reason.value, self._ledger.now_ms),
        )
        if submit.privacy is Privacy.ANY and submit.escalate is not Escalate.NEVER:
            if job.cloud_code:
                self._stay(replace(job, reason=job.reason or said.reason), said.reason, said.detail)
            else:
                self.call(replace(job, reason=said.reason, detail=said.detail))
            return
        self._stay(replace(job, reason=said.reason), said.reason, said.detail)

    def _stay(self, job: Job, reason: Reason, detail: str) -> None:
        """Deal with an escalation that leads nowhere: another board, the kept answer, failure."""
        message = detail or "the board could not answer, and the cloud may not or cannot"
        if job.kept is None and reason in _ELSEWHERE:
            self._edge.give_back(job, lapsed=False, code=reason.value, message=message)
        else:
            self._outbox.fail(job, code=job.cloud_code or reason.value, message=message)

    def _current(self, key: JobKey, attempt: int) -> Job | None:
        job = self._ledger.jobs.get(key)
        if job is None or job.status is not JobStatus.ESCALATED or job.attempt != attempt:
            return None
        return job
