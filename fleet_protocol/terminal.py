"""What all programs do around their commands: streams that are there, errors in one form."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from fleet_protocol.errors import FleetError

OK = 0
FAILED = 1


def ensure_streams() -> None:
    """Open what was closed for us (`<&-`, `>&-`): who prints or reads must not meet None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  # until the end


def complain(program: str, what: str, next_step: str = "") -> None:
    """Say on standard error what happened and what to do next."""
    lines = f"{program}: {what}\n" + (f"next: {next_step}\n" if next_step else "")
    with suppress(OSError):  # Nobody can be told that nobody can be told.
        sys.stderr.write(lines)
        sys.stderr.flush()


def complain_of(program: str, error: FleetError) -> None:
    """Say what an error is, with its code."""
    complain(program, f"{error} [{error.code}]", error.hint)


def end_of_output(program: str, error: OSError) -> int:
    """Return the exit code of a program that the system failed; mostly it could not print.

    A reader that went away (`| head`) is no error, and nothing more may be flushed to it.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return OK
    where = error.filename or "the output cannot be written"
    complain(program, f"{where}: {error.strerror or error} [io]")
    return FAILED
