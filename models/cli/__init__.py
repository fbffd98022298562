"""The command line of the factory: answers on standard output, progress on standard error."""

from models.cli.root import cli

__all__ = ["cli"]
