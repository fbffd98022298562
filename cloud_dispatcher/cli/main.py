"""The commands, each imported only when it is called: a start must not pay for the others."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Final

import click

from fleet_protocol import __version__

_COMMANDS: Final = {
    "check": "cloud_dispatcher.cli.check",
    "run": "cloud_dispatcher.cli.run",
    "simulate-cloud": "cloud_dispatcher.cli.simulate_cloud",
}


class _LazyGroup(click.Group):
    """A group whose commands live in modules of their own, as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands whose module is installed."""
        return [name for name, module in _COMMANDS.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cloud-dispatcher")
def main() -> None:
    """Store each job, pick the best board, escalate what is too hard."""
