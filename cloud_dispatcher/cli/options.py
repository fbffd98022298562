"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

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
