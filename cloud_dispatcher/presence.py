"""Who the dispatcher is to the broker and to everybody on it."""

from __future__ import annotations

from fleet_protocol import __version__, codec
from fleet_protocol import messages as m
from fleet_protocol import topics as channels
from fleet_protocol.bus import Publication, Session
from fleet_protocol.topics import Role, Topics


def presence_of(
    epoch: str, status: m.DispatcherStatus, *, since_at_ms: int = 0
) -> m.DispatcherPresence:
    """Return what the dispatcher says of itself; its `offline` form is also its will."""
    return m.DispatcherPresence(
        status=status, epoch=epoch, since_at_ms=since_at_ms, software=__version__
    )


def session_of(topics: Topics, epoch: str, *, client_id: str, expiry_s: int) -> Session:
    """Return who the dispatcher is to the broker: everything the catalogue sends it, and its will.

    With `expiry_s` above 0 the broker keeps what arrives while the dispatcher restarts.
    """
    will = Publication(
        topic=topics.name(channels.DISPATCHER),
        payload=codec.encode(presence_of(epoch, m.DispatcherStatus.OFFLINE)),
        qos=channels.DISPATCHER.qos,
        retain=True,
        content_type=codec.CONTENT_TYPE_JSON,
    )
    subscriptions = tuple(
        topics.filter(channel)
        for channel in channels.CATALOGUE
        if Role.DISPATCHER in channel.receivers
    )
    return Session(
        client_id=topics.client_id(client_id),
        subscriptions=subscriptions,
        will=will,
        expiry_s=expiry_s,
    )
