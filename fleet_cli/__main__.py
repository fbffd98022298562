"""Entry point of `fleet`: every error becomes a sentence, a next step and an exit code."""

from __future__ import annotations

import sys

from fleet_cli.exits import exit_code_of
from fleet_cli.root import root
from fleet_protocol.terminal import ensure_streams, run_program


def main() -> None:
    """Run the command line and exit."""
    ensure_streams()
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command and return its exit code."""
    return run_program(
        lambda words: root.main(words, prog_name="fleet", standalone_mode=False),
        args,
        program="fleet",
        extra="client",
        exit_code_of=exit_code_of,
    )


if __name__ == "__main__":
    main()
