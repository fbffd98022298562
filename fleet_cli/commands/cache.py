"""`fleet cache`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO

import click
import msgspec

from fleet_cli.asking import asking
from fleet_cli.connection import Connection, connection_options
from fleet_cli.exits import ExitCode
from fleet_cli.output import console, print_json, print_table, say
from fleet_client.options import JobOptions, build_submit
from fleet_protocol.errors import FleetError, RejectedError
from fleet_protocol.messages import AdminOp, CacheView, PrewarmAnswer

_OPTIONS: Final = frozenset(JobOptions.__annotations__)
_BATCH_ANSWERS: Final = 100
_BATCH_BYTES: Final = 200_000
"""Well below the bound of an `AdminRequest`; one answer may be larger."""


@click.group(
    help="""Look at, clear and fill the answer cache.

    \b
    Examples:
      fleet cache stats
      fleet cache clear --yes
      fleet cache prewarm answers.jsonl
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    short_help="Show what is kept, and how often it was given.",
    help="""Show how many answers are kept for equal questions, and how often they were given.

    \b
    Examples:
      fleet cache stats
      fleet cache stats --json | jq .given
    """,
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def stats(connection: Connection, /, *, as_json: bool) -> None:
    """Show what is cached."""
    with asking(connection) as admin:
        view = admin.request(AdminOp.CACHE_STATS).cache
    if view is None:
        raise RejectedError(
            "the dispatcher knows of no answer cache", code="unsupported", hint="update it"
        )
    if as_json:
        print_json(msgspec.to_builtins(view))
    else:
        _print(view)


@command.command(
    short_help="Forget all answers, the boards' too.",
    help="""Forget all answers, of all tenants: the dispatcher's, and those of the boards, which are
    told to. A board that is away for longer than the broker keeps messages keeps its own until
    their time is over.

    \b
    Examples:
      fleet cache clear --yes
    """,
)
@connection_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def clear(connection: Connection, /, *, yes: bool, as_json: bool) -> None:
    """Forget all answers."""
    if not yes:
        click.confirm("Forget all cached answers?", abort=True, err=True)
    with asking(connection) as admin:
        reply = admin.request(AdminOp.CACHE_CLEAR)
    _tell({"message": reply.message}, reply.message, as_json=as_json)


@command.command(
    short_help="Put answers into the cache before anybody asks.",
    help="""Put answers into the cache before anybody asks: one JSON object a line, with `prompt`
    (or `messages`) and whatever else the job will say (`max_tokens`, `output`, `escalate`, ...),
    and with `text`, the answer; where wanted `by`, the model it is from, and `cache_ttl_ms`, how
    long it serves. Or, with `--frequent`, let the fleet answer what was asked most often among the
    latest jobs and has no fresh answer any more: after a model update, say.

    A job gets the answer if it asks just that: other `max_tokens` are another question. A line that
    cannot be used is reported with its number, and the others go on.

    \b
    Examples:
      fleet cache prewarm answers.jsonl
      fleet cache prewarm --frequent 50
      echo '{"prompt": "Opening hours?", "text": "8 to 17."}' | fleet cache prewarm - --tenant north
    """,
)
@connection_options
@click.argument("file", type=click.File(encoding="utf-8"), required=False)
@click.option(
    "--frequent", type=click.IntRange(1, 1_000), metavar="N", help="Most questions to ask again."
)
@click.option("--tenant", default="default", show_default=True, help="Whose devices will ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def prewarm(
    connection: Connection,
    /,
    *,
    file: TextIO | None,
    frequent: int | None,
    tenant: str,
    as_json: bool,
) -> int:
    """Fill the cache from a file, or with what is asked most."""
    if (file is None) == (frequent is None):
        raise click.UsageError("give a FILE or --frequent N")
    if file is None:
        with asking(connection) as admin:
            message = admin.request(AdminOp.CACHE_ASK_AGAIN, limit=frequent or 1).message
        _tell({"message": message}, message, as_json=as_json)
        return int(ExitCode.OK)
    kept, failed = _fill(connection, file, tenant)
    _tell({"kept": kept, "failed": failed}, f"{kept} kept, {failed} failed", as_json=as_json)
    return int(ExitCode.JOB_FAILED if failed else ExitCode.OK)


def _tell(found: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        say(words)


def _fill(connection: Connection, file: TextIO, tenant: str) -> tuple[int, int]:
    """Put the lines' answers into the cache; return how many are in it, and how many are not."""
    kept = failed = 0
    with asking(connection) as admin:
        for batch in _batches(read_answers(file)):
            answers = [answer for _, answer in batch if isinstance(answer, PrewarmAnswer)]
            verdicts: Iterator[bool] = iter(())
            if answers:
                reply = admin.request(AdminOp.CACHE_PREWARM, answers=tuple(answers), tenant=tenant)
                verdicts = iter(reply.kept)
            for line_number, answer in batch:
                trouble = _trouble(answer, verdicts)
                kept, failed = kept + (not trouble), failed + bool(trouble)
                if trouble:
                    say(f"line {line_number}: {trouble}")
    return kept, failed


def read_answers(lines: Iterable[str]) -> Iterator[tuple[int, PrewarmAnswer | FleetError]]:
    """Yield each line's number and its answer, or why it has none; blank lines are passed over."""
    for line_number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield line_number, _read(line)
            except FleetError as error:
                yield line_number, error


def _read(line: str) -> PrewarmAnswer:
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise RejectedError(
            f"not a JSON object: {error}",
            code="malformed",
            hint='write {"prompt": "...", "text": "..."}',
        ) from error
    question = fields.pop("messages", None) or fields.pop("prompt", None)
    wanted = {name: value for name, value in fields.items() if name in _OPTIONS}
    submit = build_submit("" if question is None else question, **wanted)
    given = {"submit": submit, "text": fields.get("text"), "model": fields.get("by", "")}
    try:
        return msgspec.convert(given, PrewarmAnswer)
    except msgspec.ValidationError as error:
        raise RejectedError(
            f"the answer is not valid: {error}", code="invalid_field", hint="give it as `text`"
        ) from error


_Line = tuple[int, PrewarmAnswer | FleetError]


def _batches(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """Yield as many lines at once as fit into one request."""
    batch: list[_Line] = []
    size_bytes = 0
    for line in lines:
        line_bytes = 0
        if isinstance(line[1], PrewarmAnswer):
            line_bytes = len(msgspec.json.encode(line[1]))
        if batch and (len(batch) >= _BATCH_ANSWERS or size_bytes + line_bytes > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(line)
        size_bytes += line_bytes
    if batch:
        yield batch


def _trouble(answer: PrewarmAnswer | FleetError, verdicts: Iterator[bool]) -> str:
    """Return why a line is of no use; empty if it is."""
    if isinstance(answer, FleetError):
        return f"{answer}" + (f" ({answer.hint})" if answer.hint else "")
    if next(verdicts, False):
        return ""
    return "no job would be given this answer (sampled, `cache` off, or for the site alone)"


def _print(view: CacheView) -> None:
    rows = [
        (row.tenant, str(row.answers), f"{row.size_bytes / 1_048_576:.2f}", str(row.hits))
        for row in view.tenants
    ]
    print_table(("tenant", "answers", "MB", "given again"), rows, empty="no answer is kept")
    memory_mb = view.memory_bytes / 1_048_576
    console().print(
        f"given since the dispatcher started: {view.given}; in memory: {view.in_memory} answers, "
        f"{memory_mb:.2f} MB",
        markup=False,
    )
