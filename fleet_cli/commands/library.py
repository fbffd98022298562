"""`fleet library`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from fleet_cli.exits import ExitCode
from fleet_cli.output import console, json_option, print_json, print_table, say
from fleet_protocol.errors import cause_of
from fleet_protocol.library import (
    LOOKED_AT_CHARS,
    Library,
    LibraryAnswer,
    MatchKind,
    Near,
    is_ambiguous,
)
from fleet_protocol.library_file import LibraryFileError, parse_library

_REMARKS_MOST = 20
_FILE = click.argument("file", type=click.Path(path_type=Path))


class Remark(msgspec.Struct, frozen=True, kw_only=True):
    """An example that does not lead to its own entry.

    Attributes:
        leads_to: The entry that answers it; empty: none does.
    """

    entry: str
    example: str
    leads_to: str
    why: str


@click.group(
    help="""Look at an offline answer library: what is said where nobody else answers.

    The dispatcher reads the file that `[library] file` names, and again when it changes.

    \b
    Examples:
      fleet library check library.toml
      fleet library ask library.toml "What is the boiling point of water?"
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    short_help="Say whether a library file is good.",
    help="""Say whether a library file is good, what is in it, and which examples mislead.

    Exit code 0 if it can be used, 2 if not. Remarks are no faults.

    \b
    Examples:
      fleet library check library.toml
      fleet library check library.toml --json
    """,
)
@_FILE
@json_option
def check(file: Path, *, as_json: bool) -> None:
    """Check a file."""
    library = read(file)
    counts = {
        kind: sum(len(getattr(entry, kind)) for entry in library.entries)
        for kind in ("exact", "pattern", "nearest")
    }
    remarks = remarks_on(library)
    if as_json:
        found = {"ok": True, "entries": len(library), **counts, "default": library.has_default}
        print_json({**found, "remarks": remarks})
        return
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    rest = "a default" if library.has_default else "no default: what it does not know fails"
    console().print(f"good: {len(library)} entries ({words}), {rest}", markup=False)
    for remark in remarks[:_REMARKS_MOST]:
        say(f"note: {remark.entry}, example {remark.example!r}: {remark.why}")
    if len(remarks) > _REMARKS_MOST:
        say(f"... and {len(remarks) - _REMARKS_MOST} more: --json shows them all")


@command.command(
    short_help="Ask a library: which entry answers, and why.",
    help="""Ask a library: which entry answers, by which kind of match, and what comes close.

    Exit code 1 if it would say nothing. Whether an answer fits a job's form is not looked at.

    \b
    Examples:
      fleet library ask library.toml "What is the boiling point of water?"
      fleet library ask library.toml "Turn off the pump" --json | jq .near
    """,
)
@_FILE
@click.argument("question")
@json_option
def ask(file: Path, question: str, *, as_json: bool) -> int:
    """Ask a file."""
    library = read(file)
    answer = next(library.answers(question), None)
    near = library.near(question)
    advice = advice_on(question, answer, near)
    if as_json:
        print_json({"answer": answer, "near": near, "advice": advice})
    else:
        _print_answer(answer)
        if near:
            columns = ("entry", "score", "needed", "differs in", "example")
            print_table(columns, [_cells(row) for row in near], empty="")
        if advice:
            say(advice)
    return int(ExitCode.JOB_FAILED if answer is None else ExitCode.OK)


def read(file: Path) -> Library:
    """Read a library file.

    Raises:
        LibraryFileError: It cannot be read or used.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryFileError(
            f"{file} cannot be read: {cause_of(error)}", hint="name another"
        ) from error
    return parse_library(text, origin=str(file))


def remarks_on(library: Library) -> list[Remark]:
    """Return the examples of `nearest` that their own entry does not answer."""
    remarks: list[Remark] = []
    for entry in library.entries:
        for example in entry.nearest:
            answer = next(library.answers(example), None)
            found = "" if answer is None else answer.entry
            if found == entry.name:
                continue
            close = [row for row in library.near(example) if row.is_close]
            if found:
                why = f"entry {found!r} answers it"
            elif is_ambiguous(close):
                why = (
                    f"nobody answers it, for {close[0].entry!r} and {close[1].entry!r} are as close"
                )
            else:
                why = f"it has too few words to be found ({entry.least:g} needed)"
            remarks.append(Remark(entry=entry.name, example=example, leads_to=found, why=why))
    return remarks


def advice_on(question: str, answer: LibraryAnswer | None, near: list[Near]) -> str:
    """Say what would lead the question to the entry that is nearest; empty if one answers it."""
    if answer is not None and answer.kind is not MatchKind.DEFAULT:
        return ""
    if len(question) > LOOKED_AT_CHARS:
        return f"questions of more than {LOOKED_AT_CHARS} characters are not matched"
    if not near:
        return "no example has a word of it: write an entry, or a pattern"
    best, close = near[0], [row for row in near if row.is_close]
    if is_ambiguous(close):
        return (
            f"{close[0].entry!r} and {close[1].entry!r} are about as close: "
            "add the question as an example to one of them"
        )
    add = f"add it to {best.entry!r} as an example if that is its answer"
    if best.differs:
        words = ", ".join(best.differs)
        return f"{words}: in one of both alone, so {best.entry!r} is not taken; {add}"
    return f"{best.entry!r} has {best.score:.2f}, {best.least:g} is needed; {add}"


def _print_answer(answer: LibraryAnswer | None) -> None:
    out = console()
    if answer is None:
        out.print("nothing: such a job fails, as it would without a library", markup=False)
        return
    out.print(answer.text, markup=False)
    if answer.kind is MatchKind.DEFAULT:
        say("the default, for no entry matches")
        return
    score = f", {answer.score:.2f}" if answer.kind is MatchKind.NEAREST else ""
    say(f"entry {answer.entry}, {answer.kind} match{score}: {answer.matched}")


def _cells(row: Near) -> tuple[str, ...]:
    return (
        row.entry,
        f"{row.score:.2f}",
        f"{row.least:.2f}",
        ", ".join(row.differs) or "-",
        row.example,
    )
