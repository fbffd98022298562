"""Exit codes, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum

from fleet_client import ConnectError, DeniedError, JobTimeoutError
from fleet_protocol.errors import ConfigError, FleetError


class ExitCode(IntEnum):
    """What a script learns without reading a word."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    TIMEOUT = 4
    DENIED = 5
    JOB_LOST = 7
    """A drill found one; 6 means elsewhere that another took over our identity."""
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[FleetError], ExitCode], ...] = (
    (ConnectError, ExitCode.CANNOT_CONNECT),
    (JobTimeoutError, ExitCode.TIMEOUT),
    (DeniedError, ExitCode.DENIED),
    (ConfigError, ExitCode.USAGE),
)
_USAGE_CODES = frozenset({"invalid_field", "invalid_id", "too_large"})


def exit_code_of(error: FleetError) -> ExitCode:
    """Return the exit code that tells a script what kind of error this is."""
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return ExitCode.USAGE if error.code in _USAGE_CODES else ExitCode.JOB_FAILED
