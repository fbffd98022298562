"""Entry point of `fleet`: every error becomes a sentence, a next step and an exit code."""

from __future__ import annotations

import sys

import click

from fleet_cli.exits import ExitCode, exit_code_of
from fleet_cli.root import root
from fleet_protocol.errors import FleetError
from fleet_protocol.terminal import complain_of, end_of_output, ensure_streams


def main() -> None:
    """Run the command line and exit."""
    ensure_streams()
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        outcome = root.main(args, prog_name="fleet", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except FleetError as error:
        complain_of("fleet", error)
        return int(exit_code_of(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return int(ExitCode.INTERRUPTED)
    except OSError as error:
        return end_of_output("fleet", error)
    return outcome if isinstance(outcome, int) else int(ExitCode.OK)


if __name__ == "__main__":
    main()
