"""Alerts about endpoints of the cloud lane that are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloud_dispatcher.publisher import Publisher
from fleet_protocol.messages import Alert, EndpointView, Severity

_CLOSED: Final = "closed"
_WHAT_TO_DO: Final = {
    "provider_no_balance": "top up its account; it is used again by itself",
    "provider_denied": "renew its key and restart the dispatcher",
}


class CloudAlerts:
    """Raises an alert for each endpoint whose breaker is not closed, and clears it again."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._alerts: dict[str, tuple[str, Alert | None]] = {}
        self._told: set[str] = set()

    def announce(self) -> None:
        """Say again how it stands: the broker may have forgotten its alerts."""
        self._told.clear()

    def show(self, endpoints: Sequence[EndpointView], now_ms: int) -> None:
        """Publish what changed since the last time; an alert keeps the moment it fired at."""
        all_out = all(endpoint.state != _CLOSED for endpoint in endpoints)
        for number, endpoint in enumerate(endpoints):
            name = f"cloud-{number}"
            code = "" if endpoint.state == _CLOSED else f"{endpoint.code}{' (all)' * all_out}"
            known, alert = self._alerts.get(name, ("", None))
            if code != known:
                alert = _alert(name, endpoint, now_ms, all_out=all_out) if code else None
                self._alerts[name] = (code, alert)
            elif name in self._told:
                continue
            self._told.add(name)
            if alert is None:  # also what an earlier run of the dispatcher left behind
                self._publisher.clear_alert(name, now_ms)
            else:
                self._publisher.alert(alert)


def _alert(name: str, endpoint: EndpointView, now_ms: int, *, all_out: bool) -> Alert:
    rest = "no other endpoint is left" if all_out else "another endpoint answers"
    to_do = _WHAT_TO_DO.get(endpoint.code, "it is tried again by itself")
    return Alert(
        id=name,
        severity=Severity.CRITICAL if all_out else Severity.WARNING,
        title=f"The cloud provider {endpoint.name} is left alone: {endpoint.code}; {rest}",
        detail=to_do,
        since_at_ms=now_ms,
    )
