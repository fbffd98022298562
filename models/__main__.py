"""`python -m models`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        from models.cli import cli  # noqa: PLC0415 - its libraries are an extra and may be missing
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"models: the model factory needs {error.name} [missing_extra]\n"
            "next: pip install 'edgefleet[factory]'\n"
        )
        sys.exit(3)
    cli(prog_name="python -m models")


if __name__ == "__main__":
    main()
