"""One family of errors, sorted by what the caller can do about them.

On the wire an error is a `code`; to a person it says what happened, why, and what to do next.
"""

from __future__ import annotations


class FleetError(Exception):
    """Base of every error this project raises on purpose.

    Attributes:
        code: Stable machine-readable name, `snake_case`; the same string travels on the wire.
        hint: What the reader can do next; empty where nothing can be done.
    """

    code = "fleet_error"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.hint = hint

    @property
    def advice(self) -> str:
        """What happened and, where anything helps, what to do next: for a person to read."""
        return f"{self}; {self.hint}" if self.hint else str(self)


class RetryableError(FleetError):
    """It may work later: try again after a pause.

    Attributes:
        retry_after_ms: How long to wait at least; 0 where the other side named no time.
    """

    code = "retryable"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", retry_after_ms: int = 0
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_ms = retry_after_ms


class RejectedError(FleetError):
    """The request was understood and refused; sending it again changes nothing."""

    code = "rejected"


class ProtocolError(FleetError):
    """The other side sent bytes, a topic or a version that the protocol does not allow."""

    code = "malformed"


class ConfigError(FleetError):
    """A setting is missing, out of range or contradicts another one."""

    code = "config"


class BusClosedError(FleetError):
    """The bus was closed, by us or for good by the broker; nothing more comes or goes."""

    code = "bus_closed"


class BusFullError(RetryableError):
    """The bounded outgoing queue is full; what was not taken must be told again later."""

    code = "bus_full"


def cause_of(error: Exception) -> str:
    """What went wrong, without the number and the path that the system's own words repeat."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
