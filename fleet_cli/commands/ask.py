"""`fleet ask`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from fleet_cli.answers import exit_code_of_result, origin, result_fields
from fleet_cli.connection import Connection, connection_options
from fleet_cli.deferral import defer_option, patience_s, timeout_help
from fleet_cli.forms import form_options
from fleet_cli.limits import limit_options
from fleet_cli.output import print_json, said_if_late, say
from fleet_client.client import FleetClient, JobHandle
from fleet_client.options import JobOptions
from fleet_protocol.messages import Caching, Escalate, JobResult, Split

_USUAL_S = 120.0
_LATE = (
    "no answer yet: `fleet doctor` and `fleet workers ls` show whether somebody could give one; "
    "Ctrl-C gives up"
)


@click.command(
    help="""Put one question to the fleet and print the answer.

    \b
    Examples:
      fleet ask "What is the capital of France?"
      fleet ask --stream "How many legs does a spider have?"
      fleet ask --json --escalate never "Name three primary colors."
      fleet ask --cache off "How many legs does a spider have?"
      fleet ask --choices leak,motion,smoke "Classify: water under the sink."
      fleet ask --schema command.json "Turn on the kitchen light." | jq .device
      journalctl -n 1 | fleet ask --system "Answer ERROR or OK." -
      fleet ask --split auto --system "What went wrong?" - < day.log
      fleet ask --defer offpeak --escalate always - < report.txt
      fleet ask --label site=north --start-within 10s "Is the gate open?"
    """
)
@connection_options
@click.argument("question")
@click.option("--stream", is_flag=True, help="Print the answer while it grows.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option(
    "--escalate",
    type=click.Choice([str(e) for e in Escalate]),
    default="auto",
    show_default=True,
    help="Whether the cloud may answer.",
)
@click.option(
    "--cache",
    type=click.Choice([str(caching) for caching in Caching]),
    default="auto",
    show_default=True,
    help="Whether an earlier answer to the same question will do.",
)
@click.option(
    "--split",
    type=click.Choice([str(split) for split in Split]),
    default="no",
    show_default=True,
    help="Whether a long text is answered in parts, and their answers merged.",
)
@defer_option
@form_options
@limit_options
@click.option("--max-tokens", type=click.IntRange(1, 4_096), default=64, show_default=True)
@click.option("--system", metavar="TEXT", help="Instruction that goes before the question.")
@click.option("--model", metavar="NAME", help="Model to use; the fleet's default otherwise.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 86_400),
    show_default=timeout_help(_USUAL_S),
    help="Seconds; the answer is worth nothing afterwards.",
)
def command(
    connection: Connection,
    /,
    *,
    question: str,
    stream: bool,
    as_json: bool,
    system: str | None,
    timeout_s: float | None,
    **options: Any,
) -> int:
    """Ask; `-` reads the question from standard input."""
    limits: JobOptions = options.pop("limits")
    wait_s = patience_s(
        timeout_s,
        defer=str(options["defer"]),
        usual_s=_USUAL_S,
        not_before_ms=limits.get("not_before_ms", 0),
    )
    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise click.UsageError("there is no question")
    turns = [{"role": "user", "content": text}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    wanted: JobOptions = {
        **options,  # type: ignore[typeddict-item]  # click has checked names and types
        **limits,
        "stream": stream and not as_json,
        "deadline_ms": int(wait_s * 1_000),
    }
    give_up_at_s = time.monotonic() + wait_s
    with (
        said_if_late(_LATE) as heard,
        FleetClient(connection.broker, connection.device, client_id=connection.client_id) as client,
    ):
        handle = client.submit(turns, accept_timeout_s=timeout_s or _USUAL_S, **wanted)
        try:
            if wanted["stream"]:
                _show_growing(handle, give_up_at_s - time.monotonic(), heard)
            # The dispatcher's own word that time is up is better than ours: leave it a moment.
            result = handle.wait(max(0.0, give_up_at_s - time.monotonic()) + 1.0)
        except KeyboardInterrupt:
            handle.cancel()
            raise
    return _show(result, as_json=as_json, shown=bool(wanted["stream"]))


def _show_growing(handle: JobHandle, timeout_s: float, heard: Callable[[], None]) -> None:
    for piece in handle.stream(timeout_s + 1.0):
        heard()
        if piece.starts_over:
            sys.stdout.write("\n")
            sys.stdout.flush()
            say("(the answer starts over)")
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _show(result: JobResult, *, as_json: bool, shown: bool) -> int:
    if as_json:
        print_json(result_fields(result))
    elif result.text and not shown:
        click.echo(result.text)
    if not as_json:
        say(origin(result))
    return int(exit_code_of_result(result))
