"""What anybody may see of a fleet: presence, heartbeats and the dispatcher's summary."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Self

import msgspec

from fleet_client.credentials import broker_settings
from fleet_client.link import LinkOptions, PahoLink
from fleet_protocol.codec import decode
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import (
    DispatcherPresence,
    DispatcherStatus,
    FleetSummary,
    Presence,
    PresenceStatus,
    WorkerInfo,
    WorkerState,
)
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import (
    DISPATCHER,
    INFO,
    PRESENCE,
    STATE,
    SUMMARY,
    Address,
    Topics,
)

_log = logging.getLogger("fleet_client")
_SEEN = (DISPATCHER, SUMMARY, PRESENCE, INFO, STATE)
_WORKER_FIELDS: dict[type, str] = {Presence: "presence", WorkerInfo: "info", WorkerState: "state"}


class WorkerSight(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it shows itself.

    Attributes:
        weight: The dispatcher's, see `FleetPicture.with_weights`; no worker says it of itself.
    """

    id: str
    presence: Presence | None = None
    info: WorkerInfo | None = None
    state: WorkerState | None = None
    weight: float | None = None

    @property
    def is_online(self) -> bool:
        """Whether it takes jobs."""
        return self.presence is not None and self.presence.status is PresenceStatus.ONLINE


class FleetPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet at one moment, by what was heard so far. Every change makes a new value."""

    dispatcher: DispatcherPresence | None = None
    summary: FleetSummary | None = None
    workers: dict[str, WorkerSight] = msgspec.field(default_factory=dict)

    @property
    def has_dispatcher(self) -> bool:
        """Whether a dispatcher says that it is there."""
        return self.dispatcher is not None and self.dispatcher.status is DispatcherStatus.ONLINE

    @property
    def online_workers(self) -> tuple[str, ...]:
        """Ids of the workers that take jobs, sorted."""
        return tuple(sorted(w.id for w in self.workers.values() if w.is_online))

    def after(self, address: Address, payload: bytes) -> FleetPicture:
        """Return the picture with one more message in it.

        Raises:
            ProtocolError: The message cannot be read.
        """
        if not payload and address.channel.empty_clears:
            return self._with(address.owner, None)
        message = decode(address.channel, payload)
        if isinstance(message, DispatcherPresence):
            return msgspec.structs.replace(self, dispatcher=message)
        if isinstance(message, FleetSummary):
            return msgspec.structs.replace(self, summary=message)
        field = _WORKER_FIELDS.get(type(message))
        return self._with(address.owner, field, message) if field else self

    def _with(
        self, worker: str, field: str | None, value: msgspec.Struct | None = None
    ) -> FleetPicture:
        workers = dict(self.workers)
        if field is None:
            workers.pop(worker, None)
        else:
            before = workers.get(worker) or WorkerSight(id=worker)
            workers[worker] = msgspec.structs.replace(before, **{field: value})
        return msgspec.structs.replace(self, workers=workers)

    def with_weights(self, weights: Mapping[str, float]) -> FleetPicture:
        """Return the picture with the dispatcher's weights of those workers that it knows."""
        workers = {
            name: msgspec.structs.replace(worker, weight=weights.get(name, worker.weight))
            for name, worker in self.workers.items()
        }
        return msgspec.structs.replace(self, workers=workers)


class FleetWatcher:
    """Follows a fleet. Lifetime is `with`; `picture` is always the newest.

    Args:
        broker: Settings, or a URL.
        client_id: MQTT client id; give each process its own.
    """

    def __init__(
        self, broker: BrokerSettings | str, client_id: str, *, connect_timeout_s: float = 10.0
    ) -> None:
        settings = broker_settings(broker)
        self._topics = Topics(settings.root)
        self._changed = threading.Condition()
        self._picture = FleetPicture()
        self._link = PahoLink(
            settings,
            self,
            LinkOptions(
                client_id=client_id,
                filters=tuple(self._topics.filter(channel) for channel in _SEEN),
                connect_timeout_s=connect_timeout_s,
            ),
        )

    def __enter__(self) -> Self:
        self._link.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self._link.close()

    @property
    def picture(self) -> FleetPicture:
        """What is known now."""
        return self._picture

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._link.is_connected

    def wait_until(self, rule: Callable[[FleetPicture], bool], *, timeout_s: float) -> bool:
        """Wait until the picture obeys `rule`; return whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: rule(self._picture), timeout_s)

    def message_arrived(self, topic: str, payload: bytes) -> None:
        """Take a message from the link."""
        try:
            picture = self._picture.after(self._topics.parse(topic), payload)
        except ProtocolError as error:
            _log.warning("message.dropped topic=%s code=%s", topic, error.code)
            return
        with self._changed:
            self._picture = picture
            self._changed.notify_all()

    def link_restored(self) -> None:
        """Nothing to do: what is retained comes by itself."""

    def publish_confirmed(self, token: object) -> None:
        """Nothing to do: a watcher publishes nothing."""

    def publish_denied(self, token: object) -> None:
        """Nothing to do: a watcher publishes nothing."""
