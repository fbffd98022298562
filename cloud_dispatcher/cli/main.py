"""The commands, each imported only when it is called: a start must not pay for the others."""

from __future__ import annotations

import importlib
from typing import Final

import click

from fleet_protocol import __version__

_COMMANDS: Final = ("check", "keys", "run", "simulate", "simulate-cloud", "users")


class _LazyGroup(click.Group):
    """A group whose commands live in modules of their own, as functions of the same name."""

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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cloud-dispatcher")
def main() -> None:
    """Store each job, pick the best board, escalate what is too hard."""
