"""`fleet alerts`."""

from __future__ import annotations

import click
import msgspec

from fleet_cli.asking import asking
from fleet_cli.connection import Connection, connection_options
from fleet_cli.output import NOTHING, age, print_json, print_table, say
from fleet_client.options import check_job_id
from fleet_protocol.messages import AdminOp, Alert


@click.group(
    help="""List alerts, those that are over too, and say who looks after one.

    \b
    Examples:
      fleet alerts ls
      fleet alerts ls --firing
      fleet alerts ack overload-memory
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    help="""List alerts: what fires, then what did; the newest first.

    \b
    Examples:
      fleet alerts ls
      fleet alerts ls --firing
      fleet alerts ls --limit 200 --json
    """
)
@connection_options
@click.option("--firing", is_flag=True, help="Only those that fire now.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="Most rows."
)
@click.option("--json", "as_json", is_flag=True, help='Print one object: {"alerts": [..]}.')
def ls(connection: Connection, /, *, firing: bool, limit: int, as_json: bool) -> None:
    """List alerts."""
    with asking(connection) as admin:
        alerts = admin.request(AdminOp.ALERTS_LIST, limit=limit).alerts
    # Several dispatchers answer, each for itself.
    alerts = tuple(sorted(alerts, key=_order)[:limit])
    if firing:
        alerts = tuple(alert for alert in alerts if alert.resolved_at_ms is None)
    if as_json:
        print_json({"alerts": [msgspec.to_builtins(alert) for alert in alerts]})
        return
    print_table(
        ("alert", "severity", "since", "looked after by", "over", "what"),
        [_row(alert) for alert in alerts],
        empty="no alert fires" if firing else "no alert has fired",
    )


@command.command(
    help="""Say that you look after an alert that fires. Everybody who watches sees it.

    \b
    Example:
      fleet alerts ack overload-memory
    """
)
@connection_options
@click.argument("alert")
@click.option("--json", "as_json", is_flag=True, help="Print the alert as one JSON object.")
def ack(connection: Connection, /, *, alert: str, as_json: bool) -> None:
    """Acknowledge an alert."""
    with asking(connection) as admin:
        reply = admin.request(AdminOp.ALERT_ACK, alert=check_job_id(alert))
    if as_json:
        print_json(reply.alerts[0])
        return
    say(f"alert {alert}: {reply.message}")


def _order(alert: Alert) -> tuple[bool, int]:
    ended_at_ms = alert.resolved_at_ms
    return ended_at_ms is not None, -(ended_at_ms or alert.since_at_ms)


def _row(alert: Alert) -> tuple[str, ...]:
    over = NOTHING if alert.resolved_at_ms is None else age(alert.resolved_at_ms)
    by = alert.acked_by or NOTHING
    return alert.id, str(alert.severity), age(alert.since_at_ms), by, over, alert.title
