"""What people and scripts see: data on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console

NOTHING = "-"
PIPE_COLUMNS = 200
LATE_S = 5.0
_ROUND_FROM = 1_000.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def say(text: str) -> None:
    """Tell a person something: progress, remarks."""
    click.echo(text, err=True)


@contextmanager
def said_if_late(text: str, *, after_s: float = LATE_S) -> Iterator[Callable[[], None]]:
    """Say something unless this ends, or what it yields is called, within `after_s`."""
    timer = threading.Timer(after_s, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


@contextmanager
def said_while_stuck(progress: Callable[[], str], *, after_s: float = LATE_S) -> Iterator[None]:
    """Say how far it is whenever that did not change for a while; less and less often."""
    over = threading.Event()

    def watch() -> None:
        before, pause_s = progress(), after_s
        while not over.wait(pause_s):
            now = progress()
            pause_s = pause_s * 2.0 if now == before else after_s
            if now == before:
                say(f"{now} so far; `fleet doctor` says whether somebody can answer")
            before = now

    watching = threading.Thread(target=watch, name="said-while-stuck", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def print_json(value: Any) -> None:
    """Print one JSON object, readable on a terminal and on one line elsewhere."""
    raw = msgspec.json.encode(value)
    if sys.stdout.isatty():
        raw = msgspec.json.format(raw, indent=2)
    click.echo(raw.decode())


def tell(done: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Tell what was done: a sentence to a person, or its facts to a program."""
    if as_json:
        print_json(facts)
    else:
        say(done)


def print_json_line(value: Any) -> None:
    """Print one line of a stream, at once."""
    click.echo(msgspec.json.encode(value).decode())
    sys.stdout.flush()


def console() -> Console:
    """Return a console on standard output that honours NO_COLOR."""
    from rich.console import Console  # noqa: PLC0415  # Rich costs 60 ms: only who prints tables

    # Into a pipe a table is as wide as it must be: nothing may be cut off there.
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print a table, or say on standard error why there is none."""
    from rich import box  # noqa: PLC0415  # as above
    from rich.table import Table  # noqa: PLC0415  # as above

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if not table.rows:
        say(empty)
        return
    console().print(table)


def number(value: float | None, digits: int = 0) -> str:
    """Return a number for a table cell."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def age(at_ms: int | None) -> str:
    """Return how long ago a UTC instant was."""
    if at_ms is None:
        return NOTHING
    span_s = max(0, int(time.time() - at_ms / 1_000))
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if span_s >= size_s:
            return f"{span_s // size_s} {unit}"
    return f"{span_s} s"


def shown(name: str, value: Any) -> tuple[str, str]:
    """Return a field for people: instants as local time, fractions with four digits."""
    if name.endswith("_at_ms") and isinstance(value, int) and value:
        at = datetime.fromtimestamp(value / 1_000, tz=UTC).astimezone()
        return name.removesuffix("_ms"), f"{at:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return name, f"{value:.4g}" if abs(value) < _ROUND_FROM else f"{value:.0f}"
    return name, str(value)
