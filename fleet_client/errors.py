"""What can go wrong between an asker and the fleet."""

from __future__ import annotations

from fleet_protocol.errors import RejectedError, RetryableError


class ConnectError(RetryableError):
    """The broker cannot be reached."""

    code = "cannot_connect"


class DeniedError(RejectedError):
    """The broker knows us and says no: wrong password, or the ACL forbids the topic."""

    code = "not_authorized"


class JobTimeoutError(RetryableError):
    """Nothing was heard in time. The job may still be running: waiting again is legal."""

    code = "timeout"
