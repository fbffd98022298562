"""The spool's shipped fake: it outlives the worker object, not the process."""

from __future__ import annotations

from collections.abc import Iterable

from edge_worker.ports import SpooledJob, SpoolUnavailableError
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.messages import JobKey


class MemorySpool:
    """A `Spool` for tests and for engines that are not worth a disk.

    Attributes:
        fails: While true, the disk is "full": commits fail and change nothing.
        commits: How many transactions there were.
    """

    def __init__(self) -> None:
        self.fails = False
        self.commits = 0
        self._jobs: dict[tuple[str, int], SpooledJob] = {}
        self._answers: dict[bytes, CachedAnswer] = {}
        self._is_open = False

    def __repr__(self) -> str:
        return f"MemorySpool({len(self._jobs)} attempts, fails={self.fails})"

    def open(self) -> None:
        """Open; what an earlier owner kept is still there."""
        self._is_open = True

    def commit(
        self,
        *,
        keep: Iterable[SpooledJob],
        forget: Iterable[tuple[JobKey, int]],
        answers: Iterable[CachedAnswer] = (),
        clear: bool = False,
    ) -> None:
        """Save and delete at once; an attempt in both is deleted."""
        self._require()
        self.commits += 1
        for job in keep:
            key = (job.assignment.job, job.assignment.attempt)
            # As the file does: an attempt keeps its place and the time it came.
            first = self._jobs.get(key, job)
            self._jobs[key] = SpooledJob(
                assignment=first.assignment,
                received_at_ms=first.received_at_ms,
                outcome=job.outcome,
            )
        for ref in forget:
            self._jobs.pop(ref, None)
        if clear:
            self._answers.clear()
        self._answers |= {answer.key: answer for answer in answers}

    def load_answers(self) -> list[CachedAnswer]:
        """Return the answers kept, oldest first."""
        self._require()
        return sorted(self._answers.values(), key=lambda answer: answer.made_at_ms)

    def load(self) -> list[SpooledJob]:
        """Return everything held, oldest first."""
        self._require()
        return sorted(self._jobs.values(), key=lambda job: job.received_at_ms)

    def close(self) -> None:
        """Close."""
        self._is_open = False

    def _require(self) -> None:
        if not self._is_open or self.fails:
            raise SpoolUnavailableError("the memory spool is closed or told to fail")
