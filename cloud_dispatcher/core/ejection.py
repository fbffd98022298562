"""Workers that fail again and again are left alone for a while, then tried with one job.

As Envoy's outlier detection does it: so many errors in a row, a longer span with each time, and
never too many at once, for a fleet that fails as a whole has another cause. (envoyproxy.io,
"Outlier detection")
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Final

import msgspec

from fleet_protocol.messages import WorkerId

_SpanMs = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]

NO_FAULT: Final = frozenset({"busy", "deadline", "draining", "unknown_model"})
"""What a worker says of jobs that it gives back in good order."""


class EjectionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a worker is left alone.

    Attributes:
        errors: Failures or unheard leases in a row; 0: never.
        span_ms: For so long, times the number of times that it happened.
        sweep_ms: Pause between two looks at who may be tried again; each of them forgives those
            that do well one time.
        share: Of the workers that are there, at most; one may be left alone in any case.
    """

    errors: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 5
    span_ms: _SpanMs = 30_000
    sweep_ms: _SpanMs = 10_000
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.3


class Standing(Enum):
    """Whether a worker is trusted with jobs. `PROBING`: with one at a time, to find out."""

    IN = "in"
    OUT = "out"
    PROBING = "probing"


class _Record:
    __slots__ = ("standing", "streak", "times", "unheard_of_ms", "until_ms")

    def __init__(self) -> None:
        self.standing = Standing.IN
        self.streak = 0
        self.times = 0
        self.until_ms = 0
        self.unheard_of_ms: int | None = None


class Outliers:
    """Keeps count of workers that failed lately; of the others it knows nothing.

    Attributes:
        sweep_at_ms: When `sweep` is due next; None: nobody was ever left alone lately.
    """

    def __init__(self, settings: EjectionSettings) -> None:
        self.sweep_at_ms: int | None = None
        self._settings = settings
        self._records: dict[WorkerId, _Record] = {}

    def standing(self, worker: WorkerId) -> Standing:
        """Return whether a worker is trusted."""
        record = self._records.get(worker)
        return Standing.IN if record is None else record.standing

    def failed(self, worker: WorkerId, now_ms: int, *, present: Callable[[], int]) -> None:
        """Take note of a failure; `present` counts the workers that are there."""
        settings = self._settings
        record = self._records.setdefault(worker, _Record())
        record.streak += 1
        is_probe = record.standing is Standing.PROBING
        if record.standing is Standing.OUT or not settings.errors:
            return
        if not (is_probe or record.streak >= settings.errors):
            return
        out = sum(other.standing is Standing.OUT for other in self._records.values())
        if out >= max(1, int(settings.share * present())):
            return
        record.standing, record.streak = Standing.OUT, 0
        record.times += 1
        record.until_ms = now_ms + settings.span_ms * record.times
        if self.sweep_at_ms is None:
            self.sweep_at_ms = now_ms + settings.sweep_ms

    def unheard(
        self, worker: WorkerId, now_ms: int, *, given_at_ms: int | None, present: Callable[[], int]
    ) -> None:
        """Take note of a lease that lapsed unheard.

        Of jobs that were given at one moment only the first counts: they travelled in one message,
        and a message that was lost is one failure.
        """
        record = self._records.get(worker)
        if record is not None and record.unheard_of_ms == given_at_ms is not None:
            return
        self.failed(worker, now_ms, present=present)
        self._records[worker].unheard_of_ms = given_at_ms

    def worked(self, worker: WorkerId) -> None:
        """Take note that a worker did what it should."""
        record = self._records.get(worker)
        if record is None:
            return
        record.streak = 0
        if record.standing is Standing.PROBING:
            record.standing = Standing.IN
        if record.standing is Standing.IN and not record.times:
            del self._records[worker]

    def sweep(self, now_ms: int) -> list[WorkerId]:
        """Return whom to try with one job from now on; forgive those that do well."""
        if self.sweep_at_ms is None or now_ms < self.sweep_at_ms:
            return []
        tried: list[WorkerId] = []
        for worker, record in list(self._records.items()):
            if record.standing is Standing.OUT and record.until_ms <= now_ms:
                record.standing = Standing.PROBING
                tried.append(worker)
            elif record.standing is Standing.IN and record.times and not record.streak:
                record.times -= 1
                if not record.times:
                    del self._records[worker]
        goes_on = any(record.times for record in self._records.values())
        self.sweep_at_ms = now_ms + self._settings.sweep_ms if goes_on else None
        return tried

    def forget(self, worker: WorkerId) -> None:
        """Know nothing of a worker any more."""
        self._records.pop(worker, None)
