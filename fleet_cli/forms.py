"""The form of an answer, as options of a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, TextIO, TypeVar

import click
import msgspec

from fleet_protocol.messages import OutputFormat

_F = TypeVar("_F", bound=Callable[..., Any])


def form_options(command: _F) -> _F:
    """Add the options that name the form; the command gets it as `output`, None without one."""

    @wraps(command)
    def with_form(*args: Any, **options: Any) -> Any:
        return command(*args, output=_form(options), **options)

    for option in reversed(_OPTIONS):
        with_form = option(with_form)
    return with_form  # type: ignore[return-value]  # takes more, as click sees to


_OPTIONS = (
    click.option("--choices", metavar="A,B,...", help="The answer is one of these texts."),
    click.option(
        "--schema",
        type=click.File(encoding="utf-8"),
        help="The answer is JSON, valid under the JSON schema in this file.",
    ),
    click.option("--regex", metavar="REGEX", help="The whole answer matches it (Rust's syntax)."),
    click.option("--json-object", is_flag=True, help="The answer is some JSON object."),
)


def _form(options: dict[str, Any]) -> OutputFormat | None:
    choices: str | None = options.pop("choices")
    schema: TextIO | None = options.pop("schema")
    fields = {
        "choices": None if choices is None else [choice.strip() for choice in choices.split(",")],
        "json_schema": None if schema is None else _read(schema),
        "regex": options.pop("regex"),
        "json": options.pop("json_object") or None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        return None
    try:
        return msgspec.convert(given, OutputFormat)
    except msgspec.ValidationError as error:
        if len(given) > 1:
            raise click.UsageError(
                "give one of --choices, --schema, --regex and --json-object"
            ) from error
        raise click.UsageError(f"the form of the answer: {error}") from error


def _read(file: TextIO) -> Any:
    try:
        return json.load(file)
    except ValueError as error:
        raise click.UsageError(f"--schema {file.name} is not JSON: {error}") from error
