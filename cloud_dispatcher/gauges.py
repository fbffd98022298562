"""What Prometheus scrapes of how things stand, beside what `FleetCounts` counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from cloud_dispatcher.core.engine import EngineSummary
from cloud_dispatcher.metrics import Family, Labels
from fleet_protocol import messages as m

_ENDPOINT_STATES: Final = ("closed", "half_open", "open")
_SIGNALS: Final = ("latency", "memory", "success")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand now.

    Attributes:
        version: Of the program.
        started_at_ms: When it was started, in UTC epoch milliseconds.
        connected: Whether the broker is there, and jobs are served.
        engine: The engine's own view.
        endpoints: The cloud lane's chain; empty: there is no cloud.
        budget: Today's, of all tenants together.
        dropped: Messages that could not be used since the start, by code.
        firing: Alerts of the product's own that fire, by severity.
    """

    version: str
    started_at_ms: int
    connected: bool
    engine: EngineSummary
    endpoints: Sequence[m.EndpointView] = ()
    budget: m.BudgetView | None = None
    dropped: Mapping[str, int] = msgspec.field(default_factory=dict)
    firing: Mapping[m.Severity, int] = msgspec.field(default_factory=dict)


def families(now: Standing) -> list[Family]:
    """Return all gauges but those of single workers: `worker_gauges`."""
    return [*_of_the_program(now), *_of_jobs(now), *_of_the_cloud(now)]


def _of_the_program(now: Standing) -> Iterable[Family]:
    yield _gauge(
        "edgefleet_build_info",
        "Always 1; its label is the version.",
        {(("version", now.version),): 1},
    )
    yield _gauge(
        "edgefleet_start_time_seconds",
        "When the dispatcher was started, in seconds since 1970.",
        {(): now.started_at_ms / 1_000},
    )
    yield _gauge(
        "edgefleet_broker_connected",
        "1 while the broker is there and jobs are served.",
        {(): now.connected},
    )
    memory = now.engine.load.memory_pct
    yield _gauge(
        "edgefleet_memory_used_ratio",
        "Of the memory that the dispatcher may use; no sample where it cannot tell.",
        {} if memory is None else {(): memory / 100},
    )
    yield Family(
        name="edgefleet_messages_dropped_total",
        kind="counter",
        help="Messages that could not be used, by code.",
        samples=tuple(
            ("", (("code", code),), count) for code, count in sorted(now.dropped.items())
        ),
    )


def _of_jobs(now: Standing) -> Iterable[Family]:
    engine = now.engine
    states = {
        "queued": engine.queued,
        "delayed": engine.delayed,
        "inflight": engine.inflight,
        "escalated": engine.escalated,
    }
    yield _by("edgefleet_jobs_open", "Jobs without a result, by where they are.", "state", states)
    yield _gauge(
        "edgefleet_results_untold",
        "Results that the broker has not confirmed.",
        {(): engine.untold},
    )
    present = {status.value: engine.workers.get(status, 0) for status in m.PresenceStatus}
    yield _by("edgefleet_workers", "Workers by presence.", "status", present)
    yield _gauge(
        "edgefleet_overload_step",
        "0: all is well; 1: low priorities are refused; 2: middling ones do with the library.",
        {(): engine.load.step},
    )
    signals = {signal: signal in engine.load.causes for signal in _SIGNALS}
    yield _by("edgefleet_overload_signal", "1 while a signal of overload fires.", "signal", signals)
    firing = {severity.value: now.firing.get(severity, 0) for severity in m.Severity}
    yield _by("edgefleet_alerts_firing", "Alerts of the dispatcher's own.", "severity", firing)


def _of_the_cloud(now: Standing) -> Iterable[Family]:
    states = dict.fromkeys(_ENDPOINT_STATES, 0)
    for endpoint in now.endpoints:
        states[endpoint.state] = states.get(endpoint.state, 0) + 1
    text = "Endpoints of the cloud by state: asked, being tried, left alone."
    yield _by("edgefleet_cloud_endpoints", text, "state", states)
    budget = now.budget
    yield _gauge(
        "edgefleet_budget_spent_usd",
        "Spent in the cloud today (UTC).",
        {} if budget is None else {(): budget.spent_usd},
    )
    limit_usd = None if budget is None else budget.daily_usd
    yield _gauge(
        "edgefleet_budget_limit_usd",
        "What may be spent today; no sample without a limit.",
        {} if limit_usd is None else {(): limit_usd},
    )


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    labelled: dict[Labels, float] = {((label, key),): value for key, value in values.items()}
    return _gauge(name, text, labelled)


def _gauge(name: str, text: str, values: Mapping[Labels, float]) -> Family:
    samples = tuple(("", labels, float(value)) for labels, value in values.items())
    return Family(name=name, kind="gauge", help=text, samples=samples)
