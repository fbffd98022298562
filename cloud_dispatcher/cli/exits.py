"""How commands end: named exit codes, and errors that say what to do next."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from fleet_protocol.errors import ConfigError, FleetError

NAME: Final = "cloud-dispatcher"


class Exit(IntEnum):
    """What the shell sees; the same numbers in every program of the project."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    TIMEOUT = 4
    DENIED = 5
    TAKEN_OVER = 6
    """Another dispatcher has this identity: starting again would only take it back."""
    INTERRUPTED = 130


_BY_CODE: Final = {
    "broker_unreachable": Exit.CANNOT_CONNECT,
    "clock_behind": Exit.CANNOT_CONNECT,
    "not_authorized": Exit.DENIED,
    "session_taken_over": Exit.TAKEN_OVER,
    "timeout": Exit.TIMEOUT,
}


def exit_of(error: FleetError) -> Exit:
    """Return how a command ends that met this error."""
    if isinstance(error, ConfigError):
        return Exit.USAGE
    return _BY_CODE.get(error.code, Exit.FAILED)
