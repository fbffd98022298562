"""`fleet completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from fleet_cli.root import root


@click.command(
    help="""Print the completion script of a shell.

    \b
    Examples:
      fleet completion bash >> ~/.bashrc
      fleet completion zsh >> ~/.zshrc
      fleet completion fish > ~/.config/fish/completions/fleet.fish
    """
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    click.echo(kind(root, {}, "fleet", "_FLEET_COMPLETE").source())
