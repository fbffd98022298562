"""`python -m models`."""

from __future__ import annotations

import sys

from fleet_protocol.terminal import missing_extra, tell_error, wants_json


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        from models.cli import cli  # noqa: PLC0415 - its libraries are an extra and may be missing
    except ModuleNotFoundError as error:
        tell_error("models", missing_extra(error, "factory"), as_json=wants_json(sys.argv[1:]))
        sys.exit(3)
    cli(prog_name="python -m models")


if __name__ == "__main__":
    main()
