"""The answer cache at the dispatcher: a question that was answered lately goes to no board.

Newest answers are in memory, all of them in the store. The shell looks there for what is not here
before it hands a submission to the engine.
"""

from __future__ import annotations

from typing import Final

from cloud_dispatcher.core.commands import ForgetAnswers, KeepAnswer, UseAnswer
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.settings import CacheSettings
from fleet_protocol.answer_cache import (
    CachedAnswer,
    RecentAnswers,
    answer_key,
    build_of,
)
from fleet_protocol.messages import (
    AnsweredBy,
    CacheRow,
    CacheView,
    DeviceId,
    FinishReason,
    JobStatus,
    JobSubmit,
    PrewarmAnswer,
    Privacy,
    Split,
    WorkerId,
)

_MODEL_DID: Final = frozenset({AnsweredBy.EDGE, AnsweredBy.CLOUD})


class AnswerCache:
    """Knows which jobs an earlier answer serves, and which answers serve later jobs.

    Only a whole, undegraded answer of a model is kept, of jobs that may leave their site. A board's
    answer is given as long as the fleet has the very build of the model that made it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._settings: CacheSettings = ledger.settings.cache
        self._given = 0
        self._cleared_at_ms = -1
        self._recent = RecentAnswers(max_bytes=self._settings.memory_mb * 1_048_576)

    @property
    def recent(self) -> RecentAnswers:
        """The newest ones."""
        return self._recent

    def view(self, stored: tuple[CacheRow, ...]) -> CacheView:
        """Return what an operator is shown, the store's part being given."""
        recent = self._recent
        return CacheView(
            tenants=stored,
            given=self._given,
            in_memory=len(recent),
            memory_bytes=recent.size_bytes,
        )

    def clear(self) -> None:
        """Forget all answers, here and in the store."""
        self._recent.clear()
        self._cleared_at_ms = self._ledger.now_ms
        self._ledger.emit(ForgetAnswers())

    def prewarm(self, answer: PrewarmAnswer, tenant: str) -> bool:
        """Keep an answer that nobody asked for yet; return whether anybody could be given it."""
        key = self._key_for(tenant, answer.submit)
        if key is None:
            return False
        now_ms = self._ledger.now_ms
        cached = CachedAnswer(
            key=key,
            text=answer.text,
            model=answer.model,
            made_at_ms=now_ms,
            until_at_ms=now_ms + self._settings.span_ms(answer.submit),
        )
        self._recent.put(cached)
        self._ledger.emit(KeepAnswer(answer=cached, tenant=tenant))
        return True

    def key_of(self, device: DeviceId, submit: JobSubmit) -> bytes | None:
        """Return what the question has in common with equal ones; None: it is nobody else's.

        Tenants are kept apart: what one asked, nobody else learns, not even by how long an
        answer takes. Who may answer counts too: whoever asks for the cloud gets no board's answer.
        """
        return self._key_for(self._ledger.budget.tenant_of(device), submit)

    def _key_for(self, tenant: str, submit: JobSubmit) -> bytes | None:
        if submit.privacy is not Privacy.ANY or not self._settings.span_ms(submit):
            return None
        if submit.split is not Split.NO:
            return None  # Its parts may be answered from the boards' own caches.
        scope: tuple[str, ...] = (tenant, submit.model or "", str(submit.escalate))
        if submit.label is not None:
            scope += (submit.label,)  # What other boards know may not be what these do.
        return answer_key(submit.conversation, submit.generation, scope=scope)

    def find(self, job: Job, stored: CachedAnswer | None) -> CachedAnswer | None:
        """Return the answer that a new job gets at once, from memory or as the store had it."""
        ledger, key = self._ledger, job.answer_key
        if key is None:
            return None
        answer = self._recent.find(key, ledger.now_ms)
        is_here = answer is not None
        if answer is None and stored is not None and stored.key == key:
            # What was read before all was cleared must not come back.
            answer = stored if stored.made_at_ms > self._cleared_at_ms else None
        if answer is None or not self.serves(answer, job.submit, ledger.now_ms):
            return None
        if not is_here:
            self._recent.put(answer)
        ledger.emit(UseAnswer(key=key, at_ms=ledger.now_ms))
        return answer

    def serves(self, answer: CachedAnswer, submit: JobSubmit, now_ms: int) -> bool:
        """Tell whether an answer under the right key may be given to a job now."""
        builds = self._ledger.fleet.builds
        is_current = not answer.build or not builds or answer.build in builds
        return is_current and answer.is_fresh(now_ms, max_age_ms=submit.cache_ttl_ms)

    def keep(self, job: Job) -> None:
        """Keep the answer of a job that just got its result, if it is worth it."""
        result, key, now_ms = job.result, job.answer_key, self._ledger.now_ms
        if result is not None and result.answered_by is AnsweredBy.CACHE:
            self._given += 1
        if result is None or key is None or result.status is not JobStatus.OK or result.degraded:
            return
        if result.answered_by not in _MODEL_DID or result.finish is FinishReason.LENGTH:
            return
        build = self._build(job) if result.answered_by is AnsweredBy.EDGE else ""
        if result.answered_by is AnsweredBy.EDGE and not build:
            return  # Its worker was removed meanwhile: nobody knows what answered.
        answer = CachedAnswer(
            key=key,
            text=result.text,
            model=result.model or "",
            made_at_ms=now_ms,
            until_at_ms=now_ms + self._settings.span_ms(job.submit),
            build=build,
            confidence=result.confidence,
            simulated=result.simulated,
            usage=result.usage,
        )
        self._recent.put(answer)
        tenant = self._ledger.budget.tenant_of(job.device)
        self._ledger.emit(KeepAnswer(answer=answer, tenant=tenant))

    def _build(self, job: Job) -> str:
        result, fleet = job.result, self._ledger.fleet
        worker = fleet.find(WorkerId(result.worker)) if result and result.worker else None
        models = worker.info.models if worker is not None and worker.info is not None else ()
        named = (model for model in models if result is not None and model.name == result.model)
        return next((build_of(model) for model in named), "")
