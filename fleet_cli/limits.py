"""The limits on a job's time, and what its board must have, as options of a command."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")


def span_ms(_context: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a span as people write it: `90`, `90s`, `1.5m`, `2h`, `1d`, `500ms`; in milliseconds."""
    if value is None:
        return None
    found = _SPAN.fullmatch(value.strip())
    if found is None:
        message = f"{value!r} is no span: write 90, 90s, 1.5m, 2h, 1d or 500ms"
        raise click.BadParameter(message, param=param)
    return round(float(found[1]) * _UNITS_MS[found[2] or "s"])


def limit_options(command: _F) -> _F:
    """Add the options; the command gets those that were given as `limits`, fields of a job."""

    @wraps(command)
    def with_limits(*args: Any, **options: Any) -> Any:
        return command(*args, limits=_limits(options), **options)

    for option in reversed(_OPTIONS):
        with_limits = option(with_limits)
    return with_limits  # type: ignore[return-value]  # takes more, as click sees to


_OPTIONS = (
    click.option(
        "--not-before",
        "not_before_ms",
        metavar="SPAN",
        callback=span_ms,
        help="Nobody works on it earlier than so long from now: 30m, 2h, ...",
    ),
    click.option(
        "--start-within",
        "start_within_ms",
        metavar="SPAN",
        callback=span_ms,
        help="End it unless somebody has begun with it by then.",
    ),
    click.option(
        "--attempt-limit",
        "attempt_ms",
        metavar="SPAN",
        callback=span_ms,
        help="Longest that one attempt may take; then it is made elsewhere.",
    ),
    click.option(
        "--lease",
        "lease_ms",
        metavar="SPAN",
        callback=span_ms,
        help="How often its board must be heard of, or it goes elsewhere.",
    ),
    click.option("--label", metavar="LABEL", help="Only a board with this label: camera, site=a."),
)


def _limits(options: dict[str, Any]) -> dict[str, Any]:
    names = ("not_before_ms", "start_within_ms", "attempt_ms", "lease_ms")
    fields = {name: options.pop(name) for name in names}
    label = options.pop("label")
    fields["needs"] = None if label is None else {"label": label}
    return {name: value for name, value in fields.items() if value is not None}
