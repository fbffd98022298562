"""`fleet costs`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import click
import msgspec

from fleet_cli.asking import asking
from fleet_cli.connection import Connection, connection_options
from fleet_cli.output import NOTHING, console, print_json, print_table
from fleet_protocol.messages import AdminOp, AdminReply, BudgetView, CostRow, EndpointView

_GROUPS: Final = ("day", "tenant", "key", "reason", "provider", "model")
_SUMS: Final = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd")


@click.command(
    help="""Show what the cloud cost, today's budgets, and how it stands with the providers.

    \b
    Examples:
      fleet costs
      fleet costs --days 30 --by tenant
      fleet costs --by day,provider,model
      fleet costs --json | jq .total.cost_usd
    """
)
@connection_options
@click.option(
    "--days",
    type=click.IntRange(1, 366),
    default=7,
    show_default=True,
    help="UTC days to go back, today included.",
)
@click.option(
    "--by",
    default="day,tenant,reason",
    show_default=True,
    help=f"What to add up by: some of {', '.join(_GROUPS)}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def command(connection: Connection, /, *, days: int, by: str, as_json: bool) -> None:
    """Show costs."""
    groups = tuple(word.strip() for word in by.split(","))
    if not set(groups) <= set(_GROUPS):
        raise click.BadParameter(f"{by!r}: use some of {', '.join(_GROUPS)}", param_hint="--by")
    with asking(connection) as admin:
        reply = admin.request(AdminOp.COSTS, days=days)
    rows = add_up(reply.costs, groups)
    total = {name: value for row in add_up(reply.costs, ()) for name, value in row.items()}
    if as_json:
        print_json(
            {
                "rows": rows,
                "total": total or dict.fromkeys(_SUMS, 0),
                "budgets": [msgspec.to_builtins(budget) for budget in reply.budgets],
                "endpoints": [msgspec.to_builtins(endpoint) for endpoint in reply.endpoints],
            }
        )
        return
    if rows:
        rows.append(dict.fromkeys(groups, "") | {groups[0]: "total"} | total)
    print_table(
        (*groups, "calls", "prompt", "cached", "answer", "USD"),
        [_cells(row, groups) for row in rows],
        empty=f"nothing was spent on the cloud within {days} days",
    )
    _print_state(reply)


def add_up(costs: Iterable[CostRow], groups: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return one row for each combination of the groups, in order; no groups: one for all."""
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for cost in costs:
        key = tuple(str(getattr(cost, name)) for name in groups)
        row = sums.setdefault(key, dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            row[name] += getattr(cost, name)
    return [dict(zip(groups, key, strict=True)) | sums[key] for key in sorted(sums)]


def _cells(row: dict[str, Any], groups: tuple[str, ...]) -> tuple[str, ...]:
    words = (str(row[name]) or NOTHING for name in groups)
    counts = (str(row[name]) for name in _SUMS[:-1])
    return (*words, *counts, f"{row['cost_usd']:.6f}")


def _print_state(reply: AdminReply) -> None:
    out = console()
    for budget in reply.budgets:
        if budget.daily_usd is not None:
            out.print(_budget(budget), markup=False)
    for endpoint in reply.endpoints:
        out.print(_endpoint(endpoint), markup=False)


def _budget(budget: BudgetView) -> str:
    of = f"of {budget.daily_usd:.4f} USD"
    whose = f"key {budget.key}" if budget.key else budget.tenant or "all tenants"
    return f"budget today, {whose}: {budget.spent_usd:.4f} {of}"


def _endpoint(endpoint: EndpointView) -> str:
    if endpoint.state == "closed":
        return f"provider {endpoint.name} ({endpoint.model}): well, {endpoint.inflight} at work"
    wait_s = endpoint.ready_in_ms / 1_000
    return f"provider {endpoint.name}: left alone ({endpoint.code}), for {wait_s:.0f} s more"
