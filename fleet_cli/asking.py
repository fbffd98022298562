"""Connections of a command: whoever waits for one is told for what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeVar

from fleet_cli.connection import Connection
from fleet_cli.output import said_if_late
from fleet_client.admin import AdminClient
from fleet_protocol.settings import BrokerSettings

_T = TypeVar("_T")
_LATE_S: Final = 2.0


@contextmanager
def connected(
    client: AbstractContextManager[_T], broker: BrokerSettings, *, after_s: float = _LATE_S
) -> Iterator[_T]:
    """Enter a client of this broker, and say so if that takes longer."""
    waiting = f"waiting for {broker.place} to greet as an MQTT broker ..."
    with said_if_late(waiting, after_s=after_s) as greeted, client as there:
        greeted()
        yield there


def asking(connection: Connection) -> AbstractContextManager[AdminClient]:
    """Return what asks the dispatcher as who looks after the fleet."""
    return connected(AdminClient(connection.broker, connection.admin), connection.broker)
