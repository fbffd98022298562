"""The group of all commands, and how they fail."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from fleet_protocol import __version__
from fleet_protocol.errors import FleetError
from fleet_protocol.terminal import complain_of, end_of_output, ensure_streams
from models.cli.shelves import encrypt, list_models, publish_artefact, show, verify
from models.cli.steps import build, export, fetch_source, optimize, pack_artefact, quantize
from models.difficulty.cli import difficulty
from models.distill.ask_cli import ask_teacher_command
from models.distill.cli import distill
from models.distill.rank_cli import rank_layers_command
from models.embedding.cli import embedding
from models.errors import ExitCode, exit_code_of
from models.evaluate.cli import evaluate
from models.routing.cli import calibrate_command, evaluate_router, label
from models.terminal import print_json


class _FleetGroup(click.Group):
    """Prints our errors as code, message and next step, and ends with their exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit."""
        ensure_streams()
        try:
            super().main(*args, **kwargs)
        except OSError as error:
            sys.exit(end_of_output("models", error))
        sys.exit()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FleetError as error:
            _fail(error, as_json=bool(ctx.obj))
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
            sys.exit(ExitCode.INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """In the order of a build, not of the alphabet."""
        return list(self.commands)


@click.group(cls=_FleetGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgefleet models")
def cli() -> None:
    """Build INT8 ONNX language models for the boards.

    A model is a recipe: a name of `models list`, or a TOML file of your own. `build` does every
    step; each step can be run alone, does those before it that are not done yet, and keeps what it
    made.

    Exit codes: 0 done, 2 usage, 3 unknown model, recipe or source, 4 source or server cannot be
    reached, 5 wrong checksum, 6 unusable checkpoint or adapter, 7 verification or a gate failed, 8
    cannot write, 9 published with other bytes, 130 interrupted.

    Everything is kept below $EDGEFLEET_CACHE, or the platform's cache folder.
    """


for _command in (
    *(list_models, show, build, fetch_source, distill, export, optimize, quantize, evaluate),
    *(pack_artefact, encrypt, publish_artefact, verify, ask_teacher_command, rank_layers_command),
    *(embedding, difficulty, label, calibrate_command, evaluate_router),
):
    cli.add_command(_command)


def _fail(error: FleetError, *, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": {"code": error.code, "message": str(error), "hint": error.hint}})
    else:
        complain_of("models", error)
    sys.exit(exit_code_of(error))
