"""`fleet route`."""

from __future__ import annotations

import subprocess
import sys

import click


@click.command(
    help="""Explain where PROMPT would be answered on this machine's model, and why.

    The prompt is answered as a board would: its length and what the job allows decide first, then
    how sure the model was. Nothing is sent anywhere. Takes what `edge-worker route` takes: --model,
    --max-tokens, --escalate, --privacy, --deadline-ms, --config, --json.

    \b
    Examples:
      fleet route "How many days are in a week?"
      fleet route "Why is the sky blue?" --max-tokens 40 --json
    """,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("prompt")
@click.argument("options", metavar="", nargs=-1, type=click.UNPROCESSED)
def command(prompt: str, options: tuple[str, ...]) -> int:
    """Let the worker's own program explain: it holds the model and the rule."""
    words = [sys.executable, "-m", "edge_worker", "route", *options, "--", prompt]
    return subprocess.run(words, check=False).returncode  # noqa: S603  # our own program
