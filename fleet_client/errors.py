"""What can go wrong between an asker and the fleet."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from fleet_protocol.errors import RejectedError, RetryableError, cause_of

if TYPE_CHECKING:
    from fleet_protocol.settings import BrokerSettings


class ConnectError(RetryableError):
    """The broker cannot be reached."""

    code = "cannot_connect"


class DeniedError(RejectedError):
    """The broker knows us and says no: wrong password, or the ACL forbids the topic."""

    code = "not_authorized"


class JobTimeoutError(RetryableError):
    """Nothing was heard in time. The job may still be running: waiting again is legal."""

    code = "timeout"


def not_reached(broker: BrokerSettings, error: Exception) -> ConnectError:
    """Return what keeps a client from its broker, with what to do about it."""
    where = broker.place
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectError(
            f"the certificate of the broker at {where} is not trusted: {error.verify_message}",
            hint="check --ca-file or --identity, and that the certificate has the broker's name",
        )
    if isinstance(error, ssl.SSLError):
        return ConnectError(
            f"the TLS handshake with {where} failed: {getattr(error, 'reason', None) or error}",
            hint="a port without TLS wants mqtt://; one that asks for certificates, --identity",
        )
    return ConnectError(
        f"no broker answers at {where}: {cause_of(error)}",
        hint="start a fleet with `fleet up`, or name the broker with --broker",
    )
