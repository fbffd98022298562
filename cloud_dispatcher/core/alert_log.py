"""What fires, who took note of it, and what fired before: pure, and bounded.

An alert is one as long as its name, title and severity are the same: said again it keeps the moment
it fired at and who took note, whatever its details are by then. Anything else of that name is
another alert, of which nobody took note.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from fleet_protocol.messages import Alert, Severity

KEPT_MOST: Final = 500
"""Of alerts that are over; the oldest go first."""
_RAISED_AGAIN_WITHIN_MS: Final = 60_000
"""What an earlier run left firing is over unless it is raised again by then: signals of overload
must last for half a minute before they fire."""


class AlertLog:
    """All alerts of one dispatcher.

    Attributes:
        version: Counts changes: whoever keeps the log on a disk sees when there is something new.
    """

    def __init__(self, views: Iterable[Alert] = ()) -> None:
        """Go on with what an earlier run kept, in the order of `views`."""
        self.version = 0
        self._firing: dict[str, Alert] = {}
        self._past: deque[Alert] = deque(maxlen=KEPT_MOST)
        for view in reversed(tuple(views)):
            if view.resolved_at_ms is None:
                self._firing[view.id] = view
            else:
                self._past.append(view)
        self._unspoken = set(self._firing)
        self._unspoken_since_ms: int | None = None

    @property
    def firing(self) -> Mapping[Severity, int]:
        """How many fire, by severity."""
        return Counter(view.severity for view in self._firing.values())

    def find(self, name: str) -> Alert | None:
        """Return an alert that fires."""
        return self._firing.get(name)

    def views(self) -> tuple[Alert, ...]:
        """Return those that fire, then those that are over, both the newest first."""
        firing = sorted(self._firing.values(), key=lambda view: view.since_at_ms, reverse=True)
        return (*firing, *reversed(self._past))

    def fire(self, alert: Alert) -> Alert:
        """Take note that an alert fires; return it as it is to be told."""
        known = self._firing.get(alert.id)
        self._unspoken.discard(alert.id)
        if known is None or (known.title, known.severity) != (alert.title, alert.severity):
            if known is not None:
                self._end(known, alert.since_at_ms)
            known = alert
            self._put(known)
        elif known.detail != alert.detail:
            known = replace(known, detail=alert.detail)
            self._put(known)
        return known

    def resolve(self, name: str, now_ms: int) -> bool:
        """Take note that an alert is over; return whether it is.

        What an earlier run left firing may only not have fired yet in this one: see `forgotten`.
        """
        if name in self._unspoken:
            return False
        known = self._firing.pop(name, None)
        if known is not None:
            self._end(known, now_ms)
        return True

    def acknowledge(self, name: str, *, by: str, now_ms: int) -> Alert | None:
        """Note who looks after an alert, the first one alone; None: it does not fire."""
        known = self._firing.get(name)
        if known is not None and known.acked_at_ms is None:
            known = replace(known, acked_by=by, acked_at_ms=now_ms)
            self._put(known)
        return known

    def forgotten(self, now_ms: int) -> list[str]:
        """Return, once, what an earlier run left firing and nobody raised again: it is over."""
        if not self._unspoken:
            return []
        if self._unspoken_since_ms is None:
            self._unspoken_since_ms = now_ms
        if now_ms - self._unspoken_since_ms < _RAISED_AGAIN_WITHIN_MS:
            return []
        names = sorted(self._unspoken)
        self._unspoken.clear()
        return names

    def _put(self, view: Alert) -> None:
        self._firing[view.id] = view
        self.version += 1

    def _end(self, view: Alert, now_ms: int) -> None:
        self._past.append(replace(view, resolved_at_ms=max(now_ms, view.since_at_ms)))
        self.version += 1
