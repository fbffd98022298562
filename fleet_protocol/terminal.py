"""What all programs do around their commands: streams that are there, errors in one form."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import click

from fleet_protocol.errors import FleetError

OK: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 130
_JSON_FLAG: Final = "--json"
_OUR_OWN: Final = frozenset(
    {
        *("cloud_dispatcher", "edge_worker", "fleet_cli", "fleet_client", "fleet_pki"),
        *("fleet_protocol", "models"),
    }
)


class MissingExtraError(FleetError):
    """A library is not installed that an extra of the package brings."""

    code = "missing_extra"


def ensure_streams() -> None:
    """Open what was closed for us (`<&-`, `>&-`): who prints or reads must not meet None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  # until the end


def run_program(
    commands: Callable[[list[str]], object],
    args: Sequence[str],
    *,
    program: str,
    extra: str,
    exit_code_of: Callable[[FleetError], int],
    interrupted: str = "interrupted",
) -> int:
    """Run one command, tell its error as people or programs read it, and return its exit code.

    `commands` is a click group's `main` that leaves errors to us; `extra` of the package brings the
    libraries that this program needs.
    """
    as_json = wants_json(args)
    try:
        try:
            outcome = commands(list(args))
            code = outcome if isinstance(outcome, int) else OK
        except click.exceptions.Exit as error:
            code = error.exit_code
        except click.ClickException as error:
            _tell_usage(error, as_json=as_json)
            code = error.exit_code
        except FleetError as error:
            tell_error(program, error, as_json=as_json)
            code = exit_code_of(error)
        except ModuleNotFoundError as error:
            tell_error(program, missing_extra(error, extra), as_json=as_json)
            code = FAILED
        except (click.Abort, KeyboardInterrupt):
            complain(program, interrupted)
            code = INTERRUPTED
    except OSError as error:  # Also of what could not be told.
        code = end_of_output(program, error, as_json=as_json)
    return code


def wants_json(args: Sequence[str]) -> bool:
    """Say whether a command line asks for JSON; also one that cannot be read."""
    words = list(args)
    return _JSON_FLAG in words[: words.index("--") if "--" in words else None]


def missing_extra(error: ModuleNotFoundError, extra: str) -> MissingExtraError:
    """Return what to tell of a library that is not there.

    Raises:
        ModuleNotFoundError: It is a part of ours, and so a fault of ours.
    """
    name = error.name or "a library"
    if name.partition(".")[0] in _OUR_OWN:
        raise error
    return MissingExtraError(f"{name} is not installed", hint=f"pip install 'edgefleet[{extra}]'")


def complain(program: str, what: str, next_step: str = "") -> None:
    """Say on standard error what happened and what to do next."""
    lines = f"{program}: {what}\n" + (f"next: {next_step}\n" if next_step else "")
    with suppress(OSError):  # Nobody can be told that nobody can be told.
        sys.stderr.write(lines)
        sys.stderr.flush()


def tell_error(program: str, error: FleetError, *, as_json: bool) -> None:
    """Say what an error is: a line with its code for people, one object for programs."""
    if as_json:
        _tell_json(error.code, str(error), error.hint)
    else:
        complain(program, f"{error} [{error.code}]", error.hint)


def end_of_output(program: str, error: OSError, *, as_json: bool = False) -> int:
    """Return the exit code of a program that the system failed; mostly it could not print.

    A reader that went away (`| head`) is no error, and nothing more may be flushed to it.
    """
    where = error.filename or "the output cannot be written"
    what = f"{where}: {error.strerror or error}"
    is_told = as_json and error.filename is not None and _can_tell("io", what)
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return OK
    if not is_told:
        complain(program, f"{what} [io]")
    return FAILED


def _tell_usage(error: click.ClickException, *, as_json: bool) -> None:
    if not as_json:
        error.show()
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see `{context.command_path} --help`" if context else ""
    _tell_json("usage", error.format_message(), hint)


def _can_tell(code: str, message: str) -> bool:
    with suppress(OSError):
        _tell_json(code, message, "")
        return True
    return False


def _tell_json(code: str, message: str, hint: str) -> None:
    import json  # noqa: PLC0415  # only where something went wrong: `--help` waits for nothing

    error = {"code": code, "message": message, "hint": hint}
    sys.stdout.write(json.dumps({"error": error}, ensure_ascii=False) + "\n")
    sys.stdout.flush()
