"""The model artefact that the workers need: there already, or built now."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from fleet_cli.output import say
from fleet_cli.supervisor import program
from fleet_protocol.errors import FleetError

_SHOW_S = 60.0


class ModelBuildError(FleetError):
    """The model cannot be built here."""

    code = "model_build_failed"


class ModelFacts(msgspec.Struct, frozen=True):
    """What the factory says of a model it knows."""

    path: str
    is_built: bool


def find_model(name: str) -> ModelFacts | None:
    """Return where a model is or would be; None if the factory does not know it."""
    shown = subprocess.run(  # noqa: S603  # our own program
        program("models", "show", name, "--json"),
        capture_output=True,
        timeout=_SHOW_S,
        check=False,
    )
    if shown.returncode != 0:
        return None
    return msgspec.json.decode(shown.stdout, type=ModelFacts)


def ensure_model(name: str) -> None:
    """Build a model of the catalogue that is not there yet; its progress goes to standard error.

    A name that the factory does not know is left to the workers: they also take a folder.

    Raises:
        ModelBuildError: The build failed.
    """
    facts = find_model(name)
    if facts is None or facts.is_built:
        return
    say(f"the model {name} is not built yet: building it, once")
    built = subprocess.run(  # noqa: S603  # our own program
        program("models", "build", name), stdout=sys.stderr, check=False
    )
    if built.returncode != 0:
        raise ModelBuildError(
            f"the model {name} could not be built",
            hint=f"see why with `python -m models build {name}`, or use --engine echo",
        )
