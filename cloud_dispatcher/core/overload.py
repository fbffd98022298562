"""When there is more to do than can be done well, and what is given up for it, step by step.

Three signals are looked at once a second: how long boards take, how many jobs get no answer, how
full the memory is. One that stays beyond its limit for a while fires; as long as any presses, one
step further down is taken each such while:

1. submissions of low priority are refused as `busy`;
2. besides, those of middling priority get what the offline library has for them, at once.

Steps are taken back one by one, each after a longer while in which nothing pressed. A signal that
fired is silent again only a tenth below its limit, so that nothing flutters.

Boards that are slow are no overload: jobs that wait for them are. So answers are late only if they
take twice as long as the boards work on them, which a Raspberry Pi 4 does on each for seconds. And
where nobody waits for a board, refusing work would help nobody (the cloud is just away): latency
and failures fire an alert, but press only while jobs wait; memory always does.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from fleet_protocol.library import MatchKind
from fleet_protocol.messages import AnsweredBy, JobResult, JobStatus, LoadView

_SpanMs = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
_Priority = Annotated[int, msgspec.Meta(ge=0, le=10)]

SHED: Final = "shed"
"""A waiting job made way for one of higher priority in a full queue."""
OVERLOAD: Final = "overload"
"""A job was answered from the library because there was too much to do."""
STEPS_MOST: Final = 2
_RELIEF: Final = 0.9
_LATE: Final = 2.0
"""Of the time that the boards work on a job: what takes longer in all waited longer than that."""
_SAMPLES_MOST: Final = 4_096

_SAYS_NOTHING: Final = frozenset(
    {
        "bad_output_format",
        "unsupported_output_format",
        "output_incomplete",
        "too_long",
        "unsupported",
        "provider_bad_request",
        "provider_filtered",
        SHED,
    }
)
"""Failures of the job's own making, and those that shedding makes: neither is the fleet's."""


class Signal(StrEnum):
    """What shows that there is too much to do."""

    LATENCY = "latency"
    SUCCESS = "success"
    MEMORY = "memory"


class OverloadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When there is too much to do, and what is given up.

    Attributes:
        enabled: False: nothing is watched and nothing refused but beyond the queue's limit.
        latency_ms: Half of the boards' answers may take longer than this, from receipt to result;
            or than twice the time that boards work on half of them, where that is more.
        latency_window_ms: Of the answers of so long.
        success_share: So large a share of the jobs must get an answer; the library's default is
            none.
        success_window_ms: Of the jobs that ended within so long ...
        success_least_jobs: ... if there were at least so many.
        memory_pct: Of the machine's memory, or of what the dispatcher's group may use.
        hold_ms: So long a limit must be passed before a signal fires, and between steps down.
        relief_ms: So long nothing must press before a step is taken back.
        shed_below: From step 1 on, lower priorities than this are refused.
        spare_below: From step 2 on, lower priorities than this get the library's answer at once if
            it has one that is more than its default.
        retry_ms: What a refused device is told to wait, at most.
    """

    enabled: bool = True
    latency_ms: _SpanMs = 1_000
    latency_window_ms: _SpanMs = 30_000
    success_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.95
    success_window_ms: _SpanMs = 300_000
    success_least_jobs: Annotated[int, msgspec.Meta(ge=1)] = 20
    memory_pct: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 85.0
    hold_ms: _SpanMs = 30_000
    relief_ms: _SpanMs = 60_000
    shed_below: _Priority = 3
    spare_below: _Priority = 6
    retry_ms: _SpanMs = 15_000


class Overload:
    """Watches the signals and keeps the step.

    Attributes:
        step: 0: all is well.
        refused: Submissions refused as `busy` since the start, for whatever reason.
        shed: Accepted jobs that made way since then.
    """

    def __init__(self, settings: OverloadSettings) -> None:
        self.step = 0
        self.refused = 0
        self.shed = 0
        self._settings = settings
        self._spans: deque[tuple[int, int, int]] = deque(maxlen=_SAMPLES_MOST)
        self._ends: deque[tuple[int, bool]] = deque(maxlen=_SAMPLES_MOST)
        self._gauges = {signal: _Gauge(settings.hold_ms) for signal in Signal}
        self._values: dict[Signal, float | None] = dict.fromkeys(Signal)
        self._work_ms: float | None = None
        self._down_at_ms = 0
        self._calm_since_ms: int | None = None

    def refuses(self, priority: int) -> bool:
        """Tell whether submissions of this priority are refused now."""
        return self.step >= 1 and priority < self._settings.shed_below

    def spares(self, priority: int) -> bool:
        """Tell whether jobs of this priority do with the library's answer now."""
        return self.step >= STEPS_MOST and priority < self._settings.spare_below

    def ended(
        self, result: JobResult, *, span_ms: int | None, now_ms: int, work_ms: int = 0
    ) -> None:
        """Take note of a job's end.

        Args:
            result: Its last word.
            span_ms: From receipt to result; None: what it took says nothing of the boards.
            now_ms: May not go back.
            work_ms: What its board had of that.
        """
        if result.status is JobStatus.CANCELLED or result.code in _SAYS_NOTHING:
            return
        is_default = result.offline is not None and result.offline.kind == MatchKind.DEFAULT
        self._ends.append((now_ms, result.status is JobStatus.OK and not is_default))
        is_edge = result.answered_by is AnsweredBy.EDGE and not result.degraded
        if is_edge and span_ms is not None:
            self._spans.append((now_ms, span_ms, work_ms))

    def look(self, now_ms: int, *, waiting: int, memory_pct: float | None) -> None:
        """Look at the signals and take a step if it is time to; once a second or so.

        Args:
            now_ms: May not go back.
            waiting: Jobs that wait for a slot.
            memory_pct: None: nobody can tell.
        """
        settings = self._settings
        if not settings.enabled:
            return
        success = self._success(now_ms)
        latency_ms, self._work_ms = self._latency_ms(now_ms)
        self._values = {
            Signal.LATENCY: latency_ms,
            Signal.SUCCESS: success,
            Signal.MEMORY: memory_pct,
        }
        failure = None if success is None else 1.0 - success
        gauges, most_ms = self._gauges, max(settings.latency_ms, _LATE * (self._work_ms or 0.0))
        gauges[Signal.LATENCY].read(latency_ms, most_ms, now_ms)
        gauges[Signal.SUCCESS].read(failure, 1.0 - settings.success_share, now_ms)
        gauges[Signal.MEMORY].read(memory_pct, settings.memory_pct, now_ms)
        pressing = gauges.values() if waiting else (gauges[Signal.MEMORY],)
        presses = any(gauge.fires for gauge in pressing)
        is_calm = not any(gauge.fires or gauge.is_beyond for gauge in pressing)
        self._take_step(now_ms, presses=presses, is_calm=is_calm)

    def view(self) -> LoadView:
        """Return how it stands, as operators see it."""
        settings, values = self._settings, self._values
        return LoadView(
            step=self.step,
            causes=tuple(str(signal) for signal, gauge in self._gauges.items() if gauge.fires),
            refuses_below=settings.shed_below if self.step >= 1 else 0,
            spares_below=settings.spare_below if self.step >= STEPS_MOST else 0,
            refused=self.refused,
            shed=self.shed,
            edge_p50_ms=values[Signal.LATENCY],
            edge_work_p50_ms=self._work_ms,
            success_share=values[Signal.SUCCESS],
            memory_pct=values[Signal.MEMORY],
        )

    def _take_step(self, now_ms: int, *, presses: bool, is_calm: bool) -> None:
        settings = self._settings
        if presses and self.step < STEPS_MOST and now_ms >= self._down_at_ms:
            self.step += 1
            self._down_at_ms = now_ms + settings.hold_ms
        if not is_calm:
            self._calm_since_ms = None
            return
        if self._calm_since_ms is None:
            self._calm_since_ms = now_ms
        if self.step > 0 and now_ms - self._calm_since_ms >= settings.relief_ms:
            self.step -= 1
            self._calm_since_ms = now_ms

    def _latency_ms(self, now_ms: int) -> tuple[float | None, float | None]:
        """Return the medians of what answers took in all, and on a board; None without answers."""
        spans, since_ms = self._spans, now_ms - self._settings.latency_window_ms
        while spans and spans[0][0] < since_ms:
            spans.popleft()
        if not spans:
            return None, None
        middle = len(spans) // 2
        whole, work = (sorted(span[kind] for span in spans) for kind in (1, 2))
        return float(whole[middle]), float(work[middle])

    def _success(self, now_ms: int) -> float | None:
        """Return the share of jobs that got an answer, None of too few."""
        ends, since_ms = self._ends, now_ms - self._settings.success_window_ms
        while ends and ends[0][0] < since_ms:
            ends.popleft()
        if len(ends) < self._settings.success_least_jobs:
            return None
        return sum(answered for _, answered in ends) / len(ends)


class _Gauge:
    """One signal: fires when it was beyond its limit for long enough.

    Attributes:
        fires: It did, and was not a tenth below its limit since.
    """

    def __init__(self, hold_ms: int) -> None:
        self.fires = False
        self._hold_ms = hold_ms
        self._beyond_since_ms: int | None = None

    @property
    def is_beyond(self) -> bool:
        """Whether it is beyond its limit now, however long."""
        return self._beyond_since_ms is not None

    def read(self, value: float | None, limit: float, now_ms: int) -> None:
        """Take note of a value; None: there is nothing to be beyond a limit."""
        if value is not None and value > limit:
            if self._beyond_since_ms is None:
                self._beyond_since_ms = now_ms
            self.fires = self.fires or now_ms - self._beyond_since_ms >= self._hold_ms
            return
        self._beyond_since_ms = None
        if value is None or value <= _RELIEF * limit:
            self.fires = False
