"""Exit codes, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum

from fleet_protocol.errors import ConfigError, FleetError, ProtocolError


class ExitCode(IntEnum):
    """What a script or a service manager learns without reading a word."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    TIMEOUT = 4
    DENIED = 5
    TAKEN_OVER = 6
    """Another worker has this id: starting again would only take it back."""
    RELOAD = 7
    """An operator wants the model loaded anew: start it again."""
    INTERRUPTED = 130


_BY_CODE = {
    "broker_unreachable": ExitCode.CANNOT_CONNECT,
    "clock_behind": ExitCode.CANNOT_CONNECT,
    "timeout": ExitCode.TIMEOUT,
    "not_authorized": ExitCode.DENIED,
    "token_refused": ExitCode.DENIED,
    "model_unknown": ExitCode.USAGE,
    "session_taken_over": ExitCode.TAKEN_OVER,
    "reload": ExitCode.RELOAD,
}


def exit_code_of(error: FleetError) -> ExitCode:
    """Return the exit code that tells what kind of error this is."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return ExitCode.USAGE if isinstance(error, ConfigError | ProtocolError) else ExitCode.FAILED
