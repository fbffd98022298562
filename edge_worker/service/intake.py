"""What the broker delivers, read: a delivery in, the session's event out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog

from edge_worker.core import events as e
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.bus import Delivery
from fleet_protocol.codec import decode
from fleet_protocol.errors import ProtocolError

_log = structlog.get_logger()

OWN_CHANNELS: Final = (
    t.ASSIGN,
    t.WORKER_CANCEL,
    t.SETTLED,
    t.COMMAND,
    t.DESIRED,
    t.ECHO,
    t.CERTIFICATE,
)
"""A worker listens on its own topics of these, and on `fleet/dispatcher`."""

_EVENTS: Final[dict[type[m.Message], Callable[[Any], e.AnyEvent]]] = {
    m.Assignment: e.AssignmentReceived,
    m.WorkerCancel: lambda message: e.CancelReceived(message.job, message.attempt),
    m.Settled: lambda message: e.SettledReceived(message.jobs),
    m.WorkerCommand: e.CommandReceived,
    m.DispatcherPresence: e.DispatcherSeen,
}


def subscriptions(topics: t.Topics, worker: m.WorkerId) -> tuple[str, ...]:
    """Return the topic filters of a worker."""
    own = tuple(topics.name(channel, worker) for channel in OWN_CHANNELS)
    return (*own, topics.name(t.DISPATCHER))


class Intake:
    """Reads deliveries. What cannot be read is counted by code, and its content never logged.

    Attributes:
        malformed: Deliveries that could not be read, by error code.
    """

    def __init__(
        self,
        topics: t.Topics,
        worker: m.WorkerId,
        *,
        on_echo: Callable[[m.Probe], None],
        on_certificate: Callable[[m.CertificateReply], None],
    ) -> None:
        """`on_echo` and `on_certificate` get what is no business of the session's."""
        self.malformed: Counter[str] = Counter()
        self._on_echo = on_echo
        self._on_certificate = on_certificate
        self._channels = {topics.name(channel, worker): channel for channel in OWN_CHANNELS}
        self._channels[topics.name(t.DISPATCHER)] = t.DISPATCHER

    def read(self, delivery: Delivery) -> e.AnyEvent | None:
        """Return the event of a delivery, or None if it is nothing for the session."""
        channel = self._channels.get(delivery.topic)
        if channel is None or (channel.retain and not delivery.payload):
            return None
        try:
            message = decode(channel, delivery.payload)
        except ProtocolError as error:
            self.malformed[error.code] += 1
            size_bytes = len(delivery.payload)
            _log.warning(
                "message.malformed", channel=channel.name, code=error.code, size_bytes=size_bytes
            )
            return None
        if isinstance(message, m.Probe):
            self._on_echo(message)
            return None
        if isinstance(message, m.CertificateReply):
            self._on_certificate(message)
            return None
        make = _EVENTS.get(type(message))
        return None if make is None else make(message)
