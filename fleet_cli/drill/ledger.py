"""What devices know by themselves: what they submitted, what they were told, and when."""

from __future__ import annotations

import bisect
import threading
import time
from typing import TypeAlias

import msgspec

from fleet_protocol.messages import AckStatus, JobAck, JobResult

JobName: TypeAlias = tuple[str, str]
"""Device and its own id of the job."""


def wall_ms() -> float:
    """Return UTC epoch milliseconds."""
    return time.time_ns() / 1e6


_NOT_FINAL = frozenset({"busy", "unknown_job"})
"""Refusals after which a device tries again; the second one is of a cancellation."""


class JobRecord(msgspec.Struct, kw_only=True):
    """One job as its device saw it. Instants are the drill's own, UTC epoch milliseconds.

    Attributes:
        text: The answer's text if a board gave it, where that is known beforehand.
        accepted_at_ms: When the device was first told that it is stored.
        code: Why it was refused for good; empty if it was not.
        results: Different final words; there must never be two.
        told: How often there was a final word, the same again included.
        result_at_ms: When the first one came.
    """

    device: str
    id: str
    text: str | None
    submitted_at_ms: float
    accepted_at_ms: float | None = None
    code: str = ""
    results: list[JobResult] = []
    told: int = 0
    result_at_ms: float | None = None

    @property
    def name(self) -> JobName:
        """By which the fleet knows it."""
        return self.device, self.id

    @property
    def is_open(self) -> bool:
        """Whether its device still waits for something."""
        return not self.results and not self.code

    @property
    def wait_ms(self) -> float | None:
        """From submission to the first final word."""
        return None if self.result_at_ms is None else self.result_at_ms - self.submitted_at_ms


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What a moment, such as a fault's, meant for the jobs around it.

    Attributes:
        flowed_s: Until the first final word on a job that was submitted after it; None: not yet.
        open_jobs: Jobs whose devices waited at that moment.
        cleared_s: Until the last of these had its final word; None: not all have.
    """

    flowed_s: float | None
    open_jobs: int
    cleared_s: float | None


class Ledger:
    """Written by the devices' threads, read by the drill's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[JobName, JobRecord] = {}
        self._order: list[JobRecord] = []
        self._open: dict[JobName, JobRecord] = {}

    def submitted(self, device: str, job: str, *, text: str | None) -> None:
        """Take down that a device is about to submit a job."""
        record = JobRecord(device=device, id=job, text=text, submitted_at_ms=wall_ms())
        with self._lock:
            self._records[record.name] = self._open[record.name] = record
            self._order.append(record)

    def acked(self, device: str, job: str, ack: JobAck) -> None:
        """Take down the dispatcher's word on a submission."""
        with self._lock:
            record = self._records.get((device, job))
            if record is None:
                return
            if ack.status is AckStatus.ACCEPTED:
                record.accepted_at_ms = record.accepted_at_ms or wall_ms()
            elif not ack.retry_after_ms and ack.code not in _NOT_FINAL and not record.results:
                record.code = ack.code or "rejected"
                self._open.pop(record.name, None)

    def heard(self, device: str, result: JobResult) -> None:
        """Take down a final word."""
        with self._lock:
            record = self._records.get((device, result.id))
            if record is None:
                return
            record.told += 1
            if result not in record.results:
                record.results.append(result)
            record.result_at_ms = record.result_at_ms or wall_ms()
            self._open.pop(record.name, None)

    @property
    def open_jobs(self) -> int:
        """Jobs whose devices wait."""
        with self._lock:
            return len(self._open)

    @property
    def count(self) -> int:
        """Jobs submitted."""
        return len(self._order)

    def records(self) -> list[JobRecord]:
        """Return all jobs, in the order of their submission."""
        with self._lock:
            return list(self._order)

    def effect(self, at_ms: float) -> Effect:
        """Return what a moment meant for the jobs around it, as far as it is known by now."""
        with self._lock:
            first = bisect.bisect_left(self._order, at_ms, key=_submitted_at_ms)
            before = [r for r in self._order[:first] if _was_open(r, at_ms)]
            after = (r.result_at_ms for r in self._order[first:] if r.result_at_ms is not None)
            flowed_at_ms = min(after, default=None)
            ends = [r.result_at_ms for r in before]
        cleared_at_ms = max((end for end in ends if end is not None), default=at_ms)
        return Effect(
            flowed_s=None if flowed_at_ms is None else (flowed_at_ms - at_ms) / 1_000,
            open_jobs=len(before),
            cleared_s=None if None in ends else (cleared_at_ms - at_ms) / 1_000,
        )

    def flows_since(self, at_ms: float) -> bool:
        """Tell whether a job that was submitted after that moment has its final word."""
        with self._lock:
            first = bisect.bisect_left(self._order, at_ms, key=_submitted_at_ms)
            return any(r.result_at_ms is not None for r in self._order[first:])


def _submitted_at_ms(record: JobRecord) -> float:
    return record.submitted_at_ms


def _was_open(record: JobRecord, at_ms: float) -> bool:
    if record.code:
        return False
    return record.result_at_ms is None or record.result_at_ms >= at_ms
