"""`fleet acl`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from fleet_cli.acl_file import read_identities, render_acl
from fleet_cli.acl_trial import CAST, VERSIONS, Cell, Deviation, matrix, try_out
from fleet_cli.exits import ExitCode
from fleet_cli.output import json_option, print_json, print_table, say
from fleet_protocol.access import Identity
from fleet_protocol.topics import DEFAULT_ROOT, Role, Topics

_ROOT = click.option("--root", metavar="TOPIC", default=DEFAULT_ROOT, help="Topic root.")


@click.group(
    help="""Write and try out the broker's access list: who may say and hear what.

    It is derived from the catalogue of topics; docs/security.md says what each role may do.

    \b
    Examples:
      fleet acl render fleet.csv > /etc/mosquitto/fleet.acl
      fleet acl test
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    help="""Print a Mosquitto `acl_file` for the identities of a list.

    The list is CSV with a header `role,id`, or one JSON object a line; `-` reads standard input.
    Roles are worker, device, viewer, admin and dispatcher. A list without a dispatcher gets the
    one that is called so.

    \b
    Examples:
      fleet acl render fleet.csv > /etc/mosquitto/fleet.acl
      printf 'role,id\\nworker,pi-1\\ndevice,door\\n' | fleet acl render -
    """
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@_ROOT
def render(file: Path, *, root: str) -> None:
    """Render a list."""
    identities = read_identities(file)
    if not any(one.role is Role.DISPATCHER for one in identities):
        identities = (Identity(role=Role.DISPATCHER, id="dispatcher"), *identities)
    click.echo(render_acl(Topics(root), identities), nl=False)


@command.command(
    short_help="Try the access list out on a real broker.",
    help="""Try the access list out: every role says and listens to every topic, on a real broker.

    Starts a Mosquitto of its own on this machine, in MQTT 3.1.1 and 5, and prints who may do what
    with which topic. Exit code 1 if the broker let anybody do more or less than that.

    \b
    Examples:
      fleet acl test
      fleet acl test --json
      fleet acl test --rules        only what should be, without a broker
    """,
    name="test",
)
@click.option("--rules", is_flag=True, help="Start no broker: print what should be.")
@json_option
@_ROOT
def test(*, rules: bool, as_json: bool, root: str) -> int:
    """Try it out."""
    topics = Topics(root)
    cells = matrix(topics)
    deviations: list[Deviation] = []
    if not rules:
        with tempfile.TemporaryDirectory(prefix="fleet-acl-") as folder:
            deviations = try_out(topics, Path(folder))
    if as_json:
        versions = [] if rules else list(VERSIONS)
        print_json(
            {"ok": not deviations, "mqtt": versions, "cells": cells, "deviations": deviations}
        )
    else:
        _print(cells, topics)
        _tell(cells, deviations, was_tried=not rules)
    return int(ExitCode.JOB_FAILED if deviations else ExitCode.OK)


def _print(cells: list[Cell], topics: Topics) -> None:
    rows: dict[str, list[str]] = {}
    for cell in cells:
        words = [word for word in ("publish", "subscribe") if getattr(cell, word)]
        rows.setdefault(cell.topic, []).append(" ".join(words) or "-")
    columns = ("topic", *(f"{one.role} {one.id}" for one in CAST))
    names = {topic: topic.removeprefix(f"{topics.root}/") for topic in rows}
    print_table(columns, [(names[topic], *row) for topic, row in rows.items()], empty="")


def _tell(cells: list[Cell], deviations: list[Deviation], *, was_tried: bool) -> None:
    for one in deviations:
        what = "could" if one.happened else "could not"
        say(f"FAULT  MQTT {one.mqtt}: {one.role} {one.id} {what} {one.access} {one.topic}")
    if was_tried:
        tried = f"{2 * len(cells)} rights on Mosquitto with MQTT {' and '.join(VERSIONS)}"
        say(f"tried {tried}: {len(deviations)} differ")
