"""`fleet doctor`."""

from __future__ import annotations

import click

from fleet_cli.checks import Finding, check_fleet, check_machine
from fleet_cli.connection import Connection, connection_options
from fleet_cli.exits import ExitCode, exit_code_of
from fleet_cli.output import print_json


@click.command(
    help="""Check this machine and the fleet; each fault comes with its fix.

    Exit code 0 if a fleet can work, 3 if its broker cannot be reached, 5 if it refuses us, else 1.

    \b
    Examples:
      fleet doctor
      fleet doctor --json
      fleet doctor --broker mqtt://broker.lan:1883
    """
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(connection: Connection, /, *, as_json: bool) -> int:
    """Check everything."""
    of_fleet, unreachable = check_fleet(connection)
    findings = [*check_machine(connection.data.path), *of_fleet]
    is_ok = all(finding.ok for finding in findings if finding.needed)
    if as_json:
        print_json({"ok": is_ok, "checks": findings})
    else:
        for finding in findings:
            _print(finding)
    if unreachable is not None:
        return int(exit_code_of(unreachable))
    return int(ExitCode.OK if is_ok else ExitCode.JOB_FAILED)


def _print(finding: Finding) -> None:
    mark, colour = ("ok", "green") if finding.ok else ("FAULT", "red")
    if not finding.ok and not finding.needed:
        mark, colour = "note", "yellow"
    click.echo(f"{click.style(f'{mark:<6}', fg=colour)} {finding.name:<20} {finding.detail}")
    if finding.fix:
        click.echo(f"{'':<6} {'':<20} -> {finding.fix}")
