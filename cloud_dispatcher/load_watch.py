"""Feeds the engine the machine's memory once a second, and tells operators how the load stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from cloud_dispatcher.core.events import LoadLooked
from cloud_dispatcher.publisher import Publisher
from fleet_protocol.messages import Alert, LoadView, Severity

_log = structlog.get_logger(__name__)

_LOOK_EVERY_MS: Final = 1_000
_SIGNALS: Final = ("latency", "success", "memory")
_STEP_ALERT: Final = "overload"


class LoadWatch:
    """Raises an alert for each signal that fires and for the step taken, and clears them."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        memory: Callable[[], float | None],
        view: Callable[[], LoadView],
        report: Callable[[LoadLooked], None],
    ) -> None:
        self._publisher = publisher
        self._memory = memory
        self._view = view
        self._report = report
        self._look_at_ms = 0
        self._step = 0
        self._alerts: dict[str, Alert | None] = {}
        self._told: set[str] = set()

    async def keep(self, now_ms: int) -> None:
        """Look, if it is time to. What the engine makes of it is told the next time."""
        if now_ms < self._look_at_ms:
            return
        self._look_at_ms = now_ms + _LOOK_EVERY_MS
        self._report(LoadLooked(memory_pct=self._memory()))
        load = self._view()
        if load.step != self._step:
            self._step = load.step
            _log.warning("load.step", step=load.step, causes=load.causes)
        for signal in _SIGNALS:
            self._show(f"overload-{signal}", _reading(signal, load), now_ms)
        self._show(_STEP_ALERT, _given_up(load), now_ms)

    def announce(self) -> None:
        """Say again how it stands: the broker may have forgotten its alerts."""
        self._told.clear()

    def _show(self, name: str, words: tuple[str, str] | None, now_ms: int) -> None:
        """Publish what changed since the last time; an alert keeps the figures it fired with."""
        known, title = self._alerts.get(name), words[0] if words else ""
        if title != (known.title if known else ""):
            self._alerts[name] = None if words is None else self._alert(name, words, now_ms)
        elif name in self._told:
            return
        self._told.add(name)
        alert = self._alerts.get(name)
        if alert is None:  # also what an earlier run of the dispatcher left behind
            self._publisher.clear_alert(name, now_ms)
        else:
            self._publisher.alert(alert)

    def _alert(self, name: str, words: tuple[str, str], now_ms: int) -> Alert:
        severity = Severity.CRITICAL if name == _STEP_ALERT and self._step > 1 else Severity.WARNING
        title, detail = words
        return Alert(id=name, severity=severity, title=title, detail=detail, since_at_ms=now_ms)


def _reading(signal: str, load: LoadView) -> tuple[str, str] | None:
    """Return a signal's alert in words, None if it does not fire."""
    if signal not in load.causes:
        return None
    if signal == "latency":
        value = (
            f"{load.edge_p50_ms or 0:.0f} ms or more, the boards {load.edge_work_p50_ms or 0:.0f}"
        )
        to_do = "add boards or slots, or raise engine.overload.latency_ms if that is soon enough"
        detail = f"half of the answers take {value} of it: jobs wait; {to_do}"
        return "Answers of the boards come too late", detail
    if signal == "success":
        value = f"{100 * (load.success_share or 0):.0f} %"
        to_do = "`fleet jobs ls --dead` shows why the others were not"
        return "Too many jobs get no answer", f"{value} were answered lately; {to_do}"
    value = f"{load.memory_pct or 0:.0f} %"
    to_do = "stop other programs there, or lower engine.queue_limit and the caches"
    return "The dispatcher's machine is short of memory", f"{value} are in use; {to_do}"


def _given_up(load: LoadView) -> tuple[str, str] | None:
    """Return the step in words, None if all is well."""
    if not load.step:
        return None
    title = f"Overload, step {load.step}: priorities below {load.refuses_below} are refused"
    if load.spares_below:
        title += f", those below {load.spares_below} get the offline library's answer if it has one"
    return title, f"because of {', '.join(load.causes) or 'what was'}; taken back by itself"
