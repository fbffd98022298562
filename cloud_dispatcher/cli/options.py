"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

_F = TypeVar("_F", bound=Callable[..., Any])


def settings_options(command: _F) -> _F:
    """Add `--config`, `--broker` and `--data`."""
    for option in (
        click.option(
            "--data",
            type=click.Path(file_okay=False, path_type=Path),
            envvar="EDGEFLEET_DATA",
            help="Folder for the job store; replaces the folder of store.path.",
        ),
        click.option("--broker", metavar="URL", help="mqtt://HOST:PORT or mqtts://HOST:PORT."),
        click.option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Settings file (TOML); EDGEFLEET_DISPATCHER_* in the environment goes on top.",
        ),
    ):
        command = option(command)
    return command


def file_options(variable: str, what: str) -> Callable[[_F], _F]:
    """Return what adds `--file`, a small file that an operator edits, and `--json`."""

    def added(command: _F) -> _F:
        as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        file = click.option(
            "--file",
            required=True,
            envvar=variable,
            type=click.Path(dir_okay=False, path_type=Path),
            help=what,
        )
        return file(as_json(command))

    return added


def tell(fields: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print what was done: for programs, or for people."""
    click.echo(msgspec.json.encode(fields).decode() if as_json else text)
