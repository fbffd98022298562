"""The commands, each imported only when it is called: a start must not pay for the others."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final, NoReturn

import click

from cloud_dispatcher.cli.exits import NAME
from fleet_protocol import __version__
from fleet_protocol.terminal import end_of_output, ensure_streams

_COMMANDS: Final = ("check", "keys", "run", "simulate", "simulate-cloud", "users")


class _LazyGroup(click.Group):
    """A group whose commands live in modules of their own, as functions of the same name."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit."""
        ensure_streams()
        try:
            super().main(*args, **kwargs)
        except OSError as error:
            sys.exit(end_of_output(NAME, error))
        sys.exit()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names."""
        return list(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"{__package__}.{name}"), name)
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 cannot connect, 4 timeout, 5 denied, "
    "6 another dispatcher has this identity.",
)
@click.version_option(__version__, prog_name=NAME)
def main() -> None:
    """Store each job, pick the best board, escalate what is too hard.

    Settings come from --config, then from variables EDGEFLEET_DISPATCHER_..., then from the
    options.
    """
