"""From what was decided to what the bus publishes. Called only after the commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import structlog
from msgspec.structs import replace

from cloud_dispatcher.core.alert_log import AlertLog
from cloud_dispatcher.core.commands import AnyCommand, Reply, Send
from cloud_dispatcher.local_devices import is_local
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import MessageBus, Publication
from fleet_protocol.errors import BusFullError
from fleet_protocol.joint import joint_groups
from fleet_protocol.topics import Channel, Topics

_log = structlog.get_logger(__name__)

_SIGNED: Final = (topics.ALERTS, topics.ROSTER)
_SETTLED_MAX: Final = 1_000
"""Attempts in one `Settled`: well below its size limit."""
_LOGGED_EVERY: Final = 1_000
"""Of what a full bus does not take: whoever is busy has no disk to spare for a line each."""


class Publisher:
    """Speaks for the dispatcher.

    Attributes:
        untaken: Publications that the full bus did not take, since the start.
        alerts: All that were raised here.
    """

    def __init__(
        self,
        bus: MessageBus,
        names: Topics,
        *,
        signature: str = "",
        alerts: AlertLog | None = None,
    ) -> None:
        """Make a publisher.

        Args:
            bus: Where to.
            names: Of topics.
            signature: Ends the topics of what each of several dispatchers says for itself alone.
            alerts: What an earlier run left of them.
        """
        self.untaken = 0
        self.alerts = alerts or AlertLog()
        self._signature = signature
        self._bus = bus
        self._topics = names

    def tell(self, commands: Iterable[AnyCommand]) -> list[m.JobKey]:
        """Publish every `Send` and `Reply`; a worker's assignments, and what is settled, together.

        What is for local devices is not published, see `LocalDevices`.

        Returns:
            Jobs whose result the full bus did not take: they are still to be told. Of the rest
            nothing is lost either: a device submits again, a lease runs out, a worker reports
            what it holds.
        """
        refused: list[m.JobKey] = []
        settled: dict[tuple[str, ...], list[m.AttemptRef]] = {}
        joint: dict[tuple[tuple[str, ...], int | None], list[Send]] = {}
        for command in commands:
            if isinstance(command, Send):
                if is_local(command):
                    continue
                if command.channel is topics.SETTLED and type(command.message) is m.Settled:
                    settled.setdefault(command.ids, []).extend(command.message.jobs)
                elif command.joint:
                    joint.setdefault((command.ids, command.expiry_ms), []).append(command)
                elif not self._publish(self._publication(command)) and command.confirms:
                    refused.append(command.confirms)
            elif isinstance(command, Reply):
                self._publish(_reply(command))
        for sends in joint.values():
            for send in _joined(sends):
                self._publish(self._publication(send))
        for ids, attempts in settled.items():
            for start in range(0, len(attempts), _SETTLED_MAX):
                part = m.Settled(jobs=tuple(attempts[start : start + _SETTLED_MAX]))
                self.send(topics.SETTLED, part, *ids)
        return refused

    def send(self, channel: Channel, message: m.Message, *ids: str) -> bool:
        """Publish one message; return whether the bus took it."""
        return self._publish(self._publication(Send(channel=channel, ids=ids, message=message)))

    def echo(self, worker: m.WorkerId, payload: bytes) -> None:
        """Send a worker's probe back, byte for byte."""
        topic = self._topics.name(topics.ECHO, worker)
        self._publish(Publication(topic=topic, payload=payload, qos=topics.ECHO.qos))

    def alert(self, alert: m.Alert) -> None:
        """Say that an alert fires, and keep it in mind."""
        self.send(topics.ALERTS, self.alerts.fire(alert), alert.id)

    def say_alert(self, name: str) -> None:
        """Say again how an alert is that fires."""
        alert = self.alerts.find(name)
        if alert is not None:
            self.send(topics.ALERTS, alert, name)

    def clear_alert(self, name: str, now_ms: int) -> None:
        """Say that an alert is over; also of one that never fired here, which may be retained."""
        if self.alerts.resolve(name, now_ms):
            self.retain(self._topics.name(topics.ALERTS, self.signed(name)), b"")

    def retain(self, topic: str, payload: bytes) -> bool:
        """Publish what is to stay on a topic, as it is; return whether the bus took it."""
        return self._publish(Publication(topic=topic, payload=payload, qos=1, retain=True))

    def signed(self, name: str) -> str:
        """Return the name of an alert as it is in its topic."""
        return f"{name}{self._signature}"

    def unsigned(self, name: str) -> str | None:
        """Return the name that we know an alert by; None: it is another dispatcher's."""
        return name.removesuffix(self._signature) if name.endswith(self._signature) else None

    def _publication(self, send: Send) -> Publication:
        channel, expiry_ms, ids = send.channel, send.expiry_ms, send.ids
        if self._signature and channel in _SIGNED:
            ids = (self.signed(ids[0]),)
        payload, content_type = codec.pack(send.message)
        return Publication(
            topic=self._topics.name(channel, *ids),
            payload=payload,
            qos=channel.qos,
            retain=channel.retain,
            expiry_s=None if expiry_ms is None else -(-expiry_ms // 1_000),
            content_type=content_type,
            token=send.confirms,
        )

    def _publish(self, publication: Publication) -> bool:
        try:
            self._bus.publish(publication)
        except BusFullError as error:
            self.untaken += 1
            if self.untaken % _LOGGED_EVERY == 1:
                _log.warning("publication.untaken", count=self.untaken, code=error.code)
            return False
        return True


def _joined(sends: list[Send]) -> Iterator[Send]:
    """Yield the assignments of one worker, as many in a message as may be.

    They expire together: a broker would keep a job that is worth something, or drop one that is.
    """
    assignments = map(_assignment, sends)
    for first, *others in joint_groups(assignments, lambda one: one.prompt_chars):
        message = replace(first, more=tuple(others)) if others else first
        yield replace(sends[0], message=message)


def _assignment(send: Send) -> m.Assignment:
    assert isinstance(send.message, m.Assignment)  # noqa: S101 - nothing else is joint
    return send.message


def _reply(command: Reply) -> Publication:
    payload, content_type = codec.pack(command.message)
    return Publication(
        topic=command.topic,
        payload=payload,
        content_type=content_type,
        correlation_data=command.correlation_data,
    )
