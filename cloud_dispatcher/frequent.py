"""Asks the most frequent questions before anybody does: after a model update, say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.events import AnyEvent, JobSubmitted
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.ports import JobStore
from fleet_protocol.messages import DeviceId, JobId, JobKey, JobSubmit

_LOOKED_AT: Final = 5_000
"""Latest jobs whose questions are counted: some tens of milliseconds of the loop's time."""
_TWICE: Final = 2
_SILENT: Final = ReplyTo(silent=True)


class FrequentQuestions:
    """Finds them among the latest jobs, and submits them in the name of a device that asked.

    So its tenant gets the answer, and pays for it where the cloud gives it. The device hears
    nothing of it.
    """

    def __init__(
        self,
        store: JobStore,
        engine: Engine,
        *,
        mint: KeyMint,
        report: Callable[[AnyEvent], None],
    ) -> None:
        self._store = store
        self._engine = engine
        self._mint = mint
        self._report = report

    async def ask(self, most: int, *, now_ms: int) -> int:
        """Submit up to `most` questions that have no fresh answer; return how many.

        Raises:
            StoreUnavailableError: They cannot be read now.
        """
        asked = await self._store.recent_questions(limit=_LOOKED_AT)
        questions = self._most_frequent(asked, most)
        known = await self._store.find_answers(questions)
        count = 0
        for key, (device, submit) in questions.items():
            answer = known.get(key)
            if answer is None or not self._engine.may_give(answer, submit, now_ms):
                self._submit(device, submit, now_ms)
                count += 1
        return count

    def _most_frequent(
        self, asked: list[tuple[DeviceId, JobSubmit]], most: int
    ) -> dict[bytes, tuple[DeviceId, JobSubmit]]:
        """Return one device and its submission for each, by the key of the question."""
        counts: Counter[bytes] = Counter()
        latest: dict[bytes, tuple[DeviceId, JobSubmit]] = {}
        for device, submit in asked:
            key = self._engine.answer_key(device, submit)
            if key is not None:
                counts[key] += 1
                latest.setdefault(key, (device, submit))
        frequent = [key for key, count in counts.most_common(most) if count >= _TWICE]
        return {key: latest[key] for key in frequent}

    def _submit(self, device: DeviceId, submit: JobSubmit, now_ms: int) -> None:
        key = self._mint.mint(now_ms)
        quiet = replace(
            submit, stream=False, compact=False, priority=0, deadline_ms=None, traceparent=None
        )
        event = JobSubmitted(
            key=JobKey(key), device=device, id=JobId(key), submit=quiet, reply=_SILENT
        )
        self._report(event)
