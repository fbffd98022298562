"""All open jobs of one asker: topics and payloads in, topics and payloads out. Pure.

Both clients own one, feed it with what the broker brings and send what it says is due; everything
that is the same with threads and with asyncio is decided here.
"""

from __future__ import annotations

import re

import msgspec

from fleet_client.errors import DeniedError, JobTimeoutError
from fleet_client.tracker import JobTracker, Phase, ResendSchedule
from fleet_protocol.codec import decode, encode
from fleet_protocol.errors import ConfigError, FleetError, ProtocolError, RetryableError
from fleet_protocol.messages import (
    ID_PATTERN,
    DispatcherPresence,
    DispatcherStatus,
    JobAck,
    JobCancel,
    JobResult,
    JobSubmit,
    TokenChunk,
)
from fleet_protocol.topics import ACK, CANCEL, DISPATCHER, RESULT, SUBMIT, TOKENS, Topics

OPEN_JOBS_LIMIT = 10_000


class Outgoing(msgspec.Struct, frozen=True):
    """A QoS 1 publication that is due, and the job it belongs to."""

    topic: str
    payload: bytes
    job_id: str


class JobTable:
    """The open jobs of `device`; closed ones are forgotten, their trackers live in the handles."""

    def __init__(self, device: str, *, root: str, schedule: ResendSchedule | None = None) -> None:
        """Raise ConfigError if `device` cannot stand in a topic."""
        if not re.match(ID_PATTERN, device):
            raise ConfigError(
                f"device id {device[:64]!r} is not usable",
                hint="use 1 to 36 of the characters A-Z a-z 0-9 _ -",
            )
        self.device = device
        self.dispatcher: DispatcherPresence | None = None
        self._topics = Topics(root)
        self._schedule = schedule or ResendSchedule()
        self._open: dict[str, JobTracker] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """What must be subscribed."""
        return tuple(self._topics.filter(kind, self.device) for kind in (ACK, TOKENS, RESULT))

    @property
    def optional_filters(self) -> tuple[str, ...]:
        """What helps but may be denied: whether the dispatcher is there."""
        return (self._topics.filter(DISPATCHER),)

    def cancel_topic(self, job_id: str) -> str:
        """Return where the cancellation of any job of this device goes."""
        return self._topics.name(CANCEL, self.device, job_id)

    def add(self, job_id: str, submit: JobSubmit, now_ms: int) -> JobTracker:
        """Begin a job; the id of an open one returns that one.

        Raises:
            RetryableError: `busy`: too many jobs are open.
        """
        known = self._open.get(job_id)
        if known is not None:
            return known
        if len(self._open) >= OPEN_JOBS_LIMIT:
            raise RetryableError(
                f"{OPEN_JOBS_LIMIT} jobs are open in this client",
                code="busy",
                hint="wait for some of them first",
            )
        tracker = JobTracker(job_id, submit, now_ms=now_ms, schedule=self._schedule)
        self._open[job_id] = tracker
        return tracker

    def get(self, job_id: str) -> JobTracker | None:
        """Return an open job."""
        return self._open.get(job_id)

    def forget(self, job_id: str) -> None:
        """Say no more of a job, and hear no more of it."""
        self._open.pop(job_id, None)

    def receive(self, topic: str, payload: bytes, now_ms: int) -> JobTracker | None:
        """Take a message; return the job it changed, if any.

        Raises:
            ProtocolError: The message is none that this client understands; drop it.
        """
        address = self._topics.parse(topic)
        if address.channel is not DISPATCHER and address.owner != self.device:
            raise ProtocolError(f"{topic} is not for {self.device}", code="unknown_topic")
        message = decode(address.channel, payload)
        if isinstance(message, DispatcherPresence):
            self._dispatcher_changed(message, now_ms)
            return None
        tracker = self._open.get(address.job)
        if tracker is None:
            return None
        match message:
            case JobAck():
                tracker.acked(message, now_ms)
            case TokenChunk():
                tracker.grew(message, now_ms)
            case JobResult():
                tracker.finished(message)
        return self._settle(tracker)

    def refuse(self, job_id: str, error: FleetError) -> JobTracker | None:
        """The broker will not carry this job's messages."""
        tracker = self._open.get(job_id)
        if tracker is None:
            return None
        tracker.refuse(error)
        return self._settle(tracker)

    def confirmed(self, job_id: str) -> None:
        """The broker has what was sent of this job."""
        tracker = self._open.get(job_id)
        if tracker is not None:
            tracker.confirmed()

    def link_restored(self, now_ms: int) -> None:
        """Connected and subscribed (again): everything open is said again at once."""
        for tracker in self._open.values():
            tracker.link_restored(now_ms)

    def due(self, now_ms: int) -> list[Outgoing]:
        """Return what is to be sent now and count it as sent."""
        return [out for tracker in self._open.values() for out in self.due_of(tracker, now_ms)]

    def due_of(self, tracker: JobTracker, now_ms: int) -> list[Outgoing]:
        """Return what of one job is to be sent now and count it as sent."""
        return [
            Outgoing(self._topic_of(message, tracker.id), encode(message), tracker.id)
            for message in tracker.due(now_ms)
        ]

    @property
    def next_due_ms(self) -> int | None:
        """When `due` will next have something, by the caller's clock; None: not by itself."""
        times = [t.resend_at_ms for t in self._open.values() if t.resend_at_ms is not None]
        return min(times, default=None)

    def denied(self, topic: str) -> DeniedError:
        """Word the broker's refusal of a publication."""
        return DeniedError(
            f"the broker does not let {self.device!r} publish on {topic}",
            hint="the device id must be the MQTT user name, or the certificate's CN",
        )

    def unreadable(self, topic: str) -> DeniedError:
        """Word the broker's refusal of a subscription."""
        return DeniedError(
            f"the broker does not let {self.device!r} read {topic}",
            hint="the device id must be the MQTT user name, or the certificate's CN",
        )

    def timed_out(self, tracker: JobTracker, waited_s: float) -> JobTimeoutError:
        """Word a wait that was in vain: what is known, and what to do next."""
        what, hint = self._standstill(tracker)
        return JobTimeoutError(f"job {tracker.id}: {what} within {waited_s:g} s", hint=hint)

    def _standstill(self, tracker: JobTracker) -> tuple[str, str]:
        gone = self.dispatcher is None or self.dispatcher.status is DispatcherStatus.OFFLINE
        if tracker.phase is Phase.ACCEPTED:
            return (
                "accepted, but no result",
                "the fleet still has it: wait again, or see `fleet jobs ls` and `fleet workers ls`",
            )
        if tracker.phase is Phase.BUSY:
            return "the dispatcher stayed busy", "submit more slowly, or add workers"
        if gone:
            return (
                "not acknowledged",
                "no dispatcher is to be seen at this broker and root: see `fleet doctor`",
            )
        return (
            "not acknowledged",
            f"may {self.device!r} publish there? A 3.1.1 broker denies in silence: check its ACL",
        )

    def _dispatcher_changed(self, presence: DispatcherPresence, now_ms: int) -> None:
        before, self.dispatcher = self.dispatcher, presence
        came_back = presence.status is DispatcherStatus.ONLINE and (
            before is not None and (before.epoch, before.status) != (presence.epoch, "online")
        )
        if came_back:
            self.link_restored(now_ms)

    def _settle(self, tracker: JobTracker) -> JobTracker:
        if tracker.is_closed:
            self._open.pop(tracker.id, None)
        return tracker

    def _topic_of(self, message: object, job_id: str) -> str:
        if isinstance(message, JobCancel):
            return self.cancel_topic(job_id)
        return self._topics.name(SUBMIT, self.device, job_id)
