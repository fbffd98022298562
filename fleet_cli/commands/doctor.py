"""`fleet doctor`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fleet_cli.connection import Connection, connection_options
from fleet_cli.doctor.board_checks import check_board
from fleet_cli.doctor.board_facts import WORKER_CONFIG, is_clock_synced, read_board
from fleet_cli.doctor.finding import Finding
from fleet_cli.doctor.machine_checks import check_installed, check_machine
from fleet_cli.doctor.site_checks import check_site
from fleet_cli.doctor.site_facts import SITE, read_site
from fleet_cli.exits import ExitCode, exit_code_of
from fleet_cli.output import json_option, print_json
from fleet_protocol.errors import FleetError
from fleet_protocol.topics import DEFAULT_ROOT

_PATH = click.Path(path_type=Path)


@click.command(
    help="""Check this machine and the fleet; each fault comes with its fix.

    On a board, where a worker's settings are: processor and onnxruntime, memory and model,
    throttling, temperature, wear of the disks and what is written an hour, room, clock, the
    kernel's memory controller, certificate, the way to the broker. On the cloud host, where a
    broker's folder is: its limits, its ports, holes in its access list, certificates, names. Run it
    as root there. Anywhere else, or with --broker: this machine, and a fleet through its broker.

    Exit code 0 if a fleet can work, 3 if its broker cannot be reached, 5 if it refuses us, else 1.

    \b
    Examples:
      fleet doctor
      sudo /opt/edgefleet/current/venv/bin/fleet doctor --json
      fleet doctor --broker mqtt://broker.lan:1883
    """
)
@connection_options
@click.option(
    "--worker", metavar="FILE", type=_PATH, help=f"A worker's settings. [{WORKER_CONFIG}]"
)
@click.option("--site", metavar="DIR", type=_PATH, help=f"A broker's folder. [{SITE}]")
@json_option
def command(
    connection: Connection, /, *, worker: Path | None, site: Path | None, as_json: bool
) -> int:
    """Check everything."""
    findings: list[Finding] = []
    unreachable: FleetError | None = None
    if (config := _there(worker, WORKER_CONFIG)) is not None:
        findings += [*check_installed(("edge",)), *check_board(read_board(config))]
    if (folder := _there(site, SITE)) is not None:
        findings += _site(folder, connection)
    if connection.given is not None or not findings:
        # Boards have no library for it.
        from fleet_cli.doctor.fleet_checks import check_fleet  # noqa: PLC0415

        of_fleet, unreachable = check_fleet(connection)
        mine = [] if findings else check_machine(connection.data.path)
        findings += [*mine, *of_fleet]
    is_ok = all(finding.ok for finding in findings if finding.needed)
    if as_json:
        print_json({"ok": is_ok, "checks": findings})
    else:
        for finding in findings:
            _print(finding)
    if unreachable is not None:
        return int(exit_code_of(unreachable))
    return int(ExitCode.OK if is_ok else ExitCode.JOB_FAILED)


def _there(given: Path | None, usual: Path) -> Path | None:
    """Return what somebody named, or the usual one where there is one."""
    if given is not None:
        return given
    try:
        return usual if usual.exists() else None
    except PermissionError:
        return usual


def _site(folder: Path, connection: Connection) -> list[Finding]:
    now_ms = time.time_ns() // 1_000_000
    facts = read_site(folder, is_clock_synced=is_clock_synced(), now_ms=now_ms)
    root = DEFAULT_ROOT if connection.given is None else connection.given.root
    return [*check_installed(("cloud", "pki")), *check_site(facts, root=root)]


def _print(finding: Finding) -> None:
    mark, colour = ("ok", "green") if finding.ok else ("FAULT", "red")
    if not finding.ok and not finding.needed:
        mark, colour = "note", "yellow"
    click.echo(f"{click.style(f'{mark:<6}', fg=colour)} {finding.name:<20} {finding.detail}")
    if finding.fix:
        click.echo(f"{'':<6} {'':<20} -> {finding.fix}")
