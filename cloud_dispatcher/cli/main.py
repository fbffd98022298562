"""The commands, each imported only when it is called: a start must not pay for the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from cloud_dispatcher.cli.exits import NAME, exit_of
from fleet_protocol import __version__
from fleet_protocol.terminal import ensure_streams, run_program

_COMMANDS: Final = ("check", "keys", "run", "simulate", "simulate-cloud", "users")


class _LazyGroup(click.Group):
    """A group whose commands live in modules of their own, as functions of the same name."""

    def main(self, args: Sequence[str] | None = None, **kwargs: Any) -> NoReturn:  # type: ignore[override]  # click's own has parameters that nobody gives us
        """Run the command line and exit."""
        ensure_streams()
        kwargs["standalone_mode"] = False
        sys.exit(
            run_program(
                lambda words: super(_LazyGroup, self).main(words, **kwargs),
                sys.argv[1:] if args is None else args,
                program=NAME,
                extra="cloud",
                exit_code_of=exit_of,
            )
        )

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
    "6 another dispatcher has this identity, 130 interrupted.",
)
@click.version_option(__version__, prog_name=NAME)
def main() -> None:
    """Store each job, pick the best board, escalate what is too hard.

    Settings come from --config, then from variables EDGEFLEET_DISPATCHER_..., then from the
    options.
    """
