"""The board's own answer cache: what its model said before, it need not work out again.

In memory, and on the disk for the next boot. A hit is judged as if it had just been generated: the
same doubts lead to the same escalation.
"""

from __future__ import annotations

from collections.abc import Iterable

from fleet_protocol.answer_cache import CachedAnswer, RecentAnswers, answer_key, build_of
from fleet_protocol.messages import Assignment, FinishReason, LocalAnswer, ModelInfo


class AnswerCache:
    """Finds and keeps answers of one build of a model; how long, the dispatcher says of each job.

    Those of another build are never found: the build is part of the key. Whose devices ask is too,
    so that one tenant cannot learn by the clock what another one asked.
    """

    def __init__(self, model: ModelInfo, *, max_bytes: int) -> None:
        self._build = build_of(model)
        self._recent = RecentAnswers(max_bytes=max_bytes)

    def __len__(self) -> int:
        return len(self._recent)

    def recover(self, answers: Iterable[CachedAnswer]) -> None:
        """Take over what an earlier boot kept, the newest one last."""
        for answer in answers:
            self._recent.put(answer)

    def clear(self) -> None:
        """Forget all."""
        self._recent.clear()

    def find(self, assignment: Assignment, now_ms: int) -> LocalAnswer | None:
        """Return the answer to an equal question, if it is young enough."""
        if not assignment.cache_ttl_ms:
            return None
        answer = self._recent.find(self._key(assignment), now_ms)
        if answer is None or not answer.is_fresh(now_ms, max_age_ms=assignment.cache_ttl_ms):
            return None
        return LocalAnswer(
            text=answer.text,
            model=answer.model,
            confidence=answer.confidence,
            usage=answer.usage,
            cached=True,
        )

    def keep(self, assignment: Assignment, answer: LocalAnswer, now_ms: int) -> CachedAnswer | None:
        """Keep a whole answer; return what is to be on the disk, too, None: nothing."""
        if not assignment.cache_ttl_ms or answer.finish is FinishReason.LENGTH:
            return None
        kept = CachedAnswer(
            key=self._key(assignment),
            text=answer.text,
            model=answer.model,
            made_at_ms=now_ms,
            until_at_ms=now_ms + assignment.cache_ttl_ms,
            build=self._build,
            confidence=answer.confidence,
            usage=answer.usage,
        )
        self._recent.put(kept)
        return kept if kept.key in self._recent else None

    def _key(self, assignment: Assignment) -> bytes:
        scope = (self._build, assignment.tenant)
        return answer_key(assignment.messages, assignment.generation, scope=scope)
