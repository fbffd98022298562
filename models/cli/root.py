"""The group of all commands, and how they fail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from fleet_protocol import __version__
from fleet_protocol.terminal import ensure_streams, run_program
from models.cli.shelves import encrypt, list_models, publish_artefact, show, verify
from models.cli.steps import build, export, fetch_source, optimize, pack_artefact, quantize
from models.difficulty.cli import difficulty
from models.distill.ask_cli import ask_teacher_command
from models.distill.cli import distill
from models.distill.rank_cli import rank_layers_command
from models.embedding.cli import embedding
from models.errors import exit_code_of
from models.evaluate.cli import evaluate
from models.routing.cli import calibrate_command, evaluate_router, label


class _FleetGroup(click.Group):
    """Prints our errors as code, message and next step, and ends with their exit code."""

    def main(self, args: Sequence[str] | None = None, **kwargs: Any) -> NoReturn:  # type: ignore[override]  # click's own has parameters that nobody gives us
        """Run the command line and exit."""
        ensure_streams()
        kwargs["standalone_mode"] = False
        sys.exit(
            run_program(
                lambda words: super(_FleetGroup, self).main(words, **kwargs),
                sys.argv[1:] if args is None else args,
                program="models",
                extra="factory",
                exit_code_of=exit_code_of,
                interrupted="interrupted; the same command goes on where it stopped",
            )
        )

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
