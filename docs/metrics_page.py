"""Renders docs/metrics.md: what `/metrics` tells, from the code that tells it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import msgspec

from cloud_dispatcher import gauges, metrics
from cloud_dispatcher.core.engine import EngineSummary
from cloud_dispatcher.metrics import BUCKETS_S, Family, FleetCounts
from cloud_dispatcher.worker_gauges import WORKER_GAUGES
from fleet_protocol import messages as m

_INTRODUCTION = """# Every metric

Rendered from the code by `make docs`. The gateway serves them at `/metrics`:
[how to ask](gateway.md#watching-over-it); [rules, alerts and a Grafana board](monitoring.md) stand
on them. Counters run from the start of the dispatcher. Those of a single worker are told with
`[gateway] worker_metrics = true` alone.
"""


def render_metrics() -> str:
    """Return the page."""
    labels, of_workers = counted_labels(), [gauge.family for gauge in WORKER_GAUGES]
    lines = [_INTRODUCTION, "| metric | kind | labels | |", "|---|---|---|---|"]
    for family in told_families():
        names = sorted(labels.get(family.name, set()) | _labels(family))
        names += ["worker"] if family in of_workers else []
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| `{family.name}` | {family.kind} | {listed} | {family.help} |")
    buckets = ", ".join(f"{bound:g}" for bound in BUCKETS_S)
    lines += ["", f"A histogram's buckets end at {buckets} seconds.", ""]
    return "\n".join(lines)


def told_families() -> Iterator[Family]:
    """Yield every family that a scrape may have."""
    yield from FleetCounts().families()
    budget = m.BudgetView(tenant="", spent_usd=0.0, daily_usd=1.0)
    yield from gauges.families(at_rest(budget=budget, dropped={"invalid_json": 1}))
    yield from (gauge.family for gauge in WORKER_GAUGES)


def at_rest(**changes: object) -> gauges.Standing:
    """Return how a dispatcher stands to which nothing has happened yet, but for what is given."""
    fields: dict[str, object] = {
        "version": "9.0.0",
        "started_at_ms": 1_700_000_000_500,
        "connected": True,
        "engine": EngineSummary(queued=0, inflight=0, escalated=0, untold=0, workers={}),
    }
    return msgspec.convert({**fields, **changes}, gauges.Standing)


def counted_labels() -> dict[str, set[str]]:
    """Return the labels of counters by their names, as the code that counts names them.

    Most series exist only once something was counted, so the source is read.
    """
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(metrics))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._add":
            name = node.args[0]
            if isinstance(name, ast.Constant):
                labels = {word.arg for word in node.keywords if word.arg}
                found.setdefault(str(name.value), set()).update(labels)
    return found


def _labels(family: Family) -> set[str]:
    return {name for _, labels, _ in family.samples for name, _ in labels if name != "le"}
