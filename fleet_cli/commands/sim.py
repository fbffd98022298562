"""`fleet sim`."""

from __future__ import annotations

import subprocess
import sys

import click


@click.command(
    help="""Try scheduling policies out on a modelled fleet: the real engine, in virtual time.

    Nothing is sent anywhere. Every policy meets the same jobs, boards and faults, once for each
    seed. Takes what `cloud-dispatcher simulate` takes: a scenario file, --policy, --seeds,
    --boards, --jobs, --load, --rate, --trace, --plot, --processes, --json.

    \b
    Examples:
      fleet sim --plot policies.svg
      fleet sim scenario.toml --policy wlc --policy round_robin --json
      fleet jobs ls --limit 1000 --jsonl > jobs.jsonl; fleet sim --trace jobs.jsonl
    """,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("options", metavar="[SCENARIO]", nargs=-1, type=click.UNPROCESSED)
def command(options: tuple[str, ...]) -> int:
    """Let the dispatcher's own program simulate: it holds the engine."""
    words = [sys.executable, "-m", "cloud_dispatcher", "simulate", *options]
    return subprocess.run(words, check=False).returncode  # noqa: S603  # our own program
