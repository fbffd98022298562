"""Who the dispatcher is to the broker and to everybody on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from fleet_protocol import __version__, codec
from fleet_protocol import messages as m
from fleet_protocol import topics as channels
from fleet_protocol.bus import Delivery, MessageBus, Publication, Session
from fleet_protocol.errors import ProtocolError
from fleet_protocol.topics import Role, Topics


def presence_of(
    epoch: str, status: m.DispatcherStatus, *, since_at_ms: int = 0
) -> m.DispatcherPresence:
    """Return what the dispatcher says of itself; its `offline` form is also its will."""
    return m.DispatcherPresence(
        status=status,
        epoch=epoch,
        since_at_ms=since_at_ms,
        software=__version__,
        capabilities=(m.JOINT_ANSWERS,),
    )


def says_offline(delivery: Delivery) -> bool:
    """Tell whether the word of a dispatcher is that it is gone."""
    try:
        said = codec.decode(channels.DISPATCHER, delivery.payload)
    except ProtocolError:
        return False
    return isinstance(said, m.DispatcherPresence) and said.status is m.DispatcherStatus.OFFLINE


CLUSTER_EPOCH: Final = "cluster"
"""Several dispatchers have one presence: workers need not care which of them come and go."""
_GROUP: Final = "dispatchers"
_SHARED: Final = (channels.SUBMIT, channels.ASK)
_OF_ONE_WORKER: Final = (channels.STATE, channels.HELD, channels.PROBE)
_HEARD_BY_ALL: Final = (
    channels.CANCEL,
    channels.PRESENCE,
    channels.INFO,
    *channels.REQUESTS.values(),
    channels.DISPATCHER,
)


def member_session_of(topics: Topics, *, client_id: str) -> Session:
    """Return who one of several dispatchers is to the broker.

    Submissions are spread over all; what workers say of their jobs is subscribed to worker by
    worker, see `WorkerLines`. No session is kept: a broker would go on to give submissions to a
    member that is gone. Whoever is not answered asks again.
    """
    shared = (f"$share/{_GROUP}/{topics.filter(channel)}" for channel in _SHARED)
    alone = (topics.filter(channel) for channel in _HEARD_BY_ALL)
    session = session_of(topics, CLUSTER_EPOCH, client_id=client_id, expiry_s=0)
    return replace(session, subscriptions=(*shared, *alone))


class WorkerLines:
    """What workers say of their jobs, heard for as long as they are ours."""

    def __init__(self, bus: MessageBus, topics: Topics) -> None:
        self._bus = bus
        self._topics = topics

    @property
    def are_up(self) -> bool:
        """Whether the broker is there."""
        return self._bus.is_connected

    def listen(self, workers: Iterable[m.WorkerId]) -> None:
        """Hear what these workers say of their jobs from now on."""
        self._bus.subscribe([x for worker in workers for x in self._filters(worker)])

    def forget(self, workers: Iterable[m.WorkerId]) -> None:
        """Hear it no more."""
        self._bus.unsubscribe([x for worker in workers for x in self._filters(worker)])

    def _filters(self, worker: m.WorkerId) -> Iterable[str]:
        jobs = self._topics.filter(channels.DONE, worker).rpartition("/")[0]
        names = (self._topics.name(channel, worker) for channel in _OF_ONE_WORKER)
        return (*names, f"{jobs}/+")


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
