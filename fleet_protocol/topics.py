"""The one catalogue of topics: what travels where, from whom to whom, and how.

The ACL, the protocol document and the dispatcher's subscriptions are all derived from `CATALOGUE`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec

from fleet_protocol import messages as m
from fleet_protocol.errors import ConfigError, ProtocolError

DEFAULT_ROOT = "fleet/v1"
_ID: Final = re.compile(m.ID_PATTERN)
# What nearly all messages have for a topic, read in one go; the rest is taken level by level.
_OWNED: Final = re.compile(
    r"(dev|workers)/([A-Za-z0-9_-]{1,36})/(?:jobs/([A-Za-z0-9_-]{1,36})/)?([a-z]+)"
)
_LEVEL: Final = re.compile(r"^[^/+#\x00\s][^/+#\x00]*$")


class Role(StrEnum):
    """Who may be at one end of a channel."""

    DEVICE = "device"
    WORKER = "worker"
    DISPATCHER = "dispatcher"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    AUTHORITY = "authority"


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the catalogue.

    Attributes:
        name: Stable name; unique.
        template: Topic below the root, with `{device}`, `{worker}`, `{job}`, ... for ids.
        message: What its payload decodes to.
        also: Other message types a sender may put there.
        qos: 0 or 1.
        text: The payload is plain text (or, from a device, may be JSON).
        empty_clears: An empty retained payload is legal and removes the topic.
    """

    name: str
    template: str
    message: type[m.Message]
    sender: Role
    receivers: tuple[Role, ...]
    qos: int
    retain: bool = False
    also: tuple[type[m.Message], ...] = ()
    text: bool = False
    empty_clears: bool = False

    @property
    def max_bytes(self) -> int:
        """Largest legal payload."""
        return max(kind.MAX_BYTES for kind in (self.message, *self.also))


_D, _W, _X = Role.DEVICE, Role.WORKER, Role.DISPATCHER
_V, _O, _A = Role.VIEWER, Role.OPERATOR, Role.ADMIN

_Route = tuple[Role, tuple[Role, ...]]
_UP: _Route = (_D, (_X,))
_DOWN: _Route = (_X, (_D,))
_FROM_WORKER: _Route = (_W, (_X,))
_TO_WORKER: _Route = (_X, (_W,))
_PUBLIC: _Route = (_W, (_X, _V, _O, _A))
_BROADCAST: _Route = (_X, (_V, _O, _A))


def _event(name: str, template: str, message: type[m.Message], route: _Route) -> Channel:
    """A channel of messages that must arrive: QoS 1, not retained."""
    return Channel(
        name=name, template=template, message=message, sender=route[0], receivers=route[1], qos=1
    )


def _stream(name: str, template: str, message: type[m.Message], route: _Route) -> Channel:
    """A channel of messages that may be lost: QoS 0, not retained."""
    return msgspec.structs.replace(_event(name, template, message, route), qos=0)


def _kept(channel: Channel, *, empty_clears: bool = False) -> Channel:
    """The same channel, retained: a late subscriber sees the last message."""
    return msgspec.structs.replace(channel, retain=True, empty_clears=empty_clears)


def _plain(channel: Channel) -> Channel:
    """The same channel with plain text for a payload."""
    return msgspec.structs.replace(channel, text=True)


_JOB = "dev/{device}/jobs/{job}"
_WORK = "workers/{worker}/jobs/{job}"

ASK = _plain(_event("ask", "dev/{device}/ask", m.JobSubmit, _UP))
ANSWER = _plain(_event("answer", "dev/{device}/answer", m.PlainText, _DOWN))
SUBMIT = _event("submit", f"{_JOB}/submit", m.JobSubmit, _UP)
CANCEL = _event("cancel", f"{_JOB}/cancel", m.JobCancel, _UP)
ACK = _event("ack", f"{_JOB}/ack", m.JobAck, _DOWN)
TOKENS = _stream("tok", f"{_JOB}/tok", m.TokenChunk, _DOWN)
RESULT = msgspec.structs.replace(
    _event("res", f"{_JOB}/res", m.JobResult, _DOWN), also=(m.CompactResult,)
)

PRESENCE = _kept(
    _event("presence", "workers/{worker}/presence", m.Presence, _PUBLIC), empty_clears=True
)
INFO = _kept(_event("info", "workers/{worker}/info", m.WorkerInfo, _PUBLIC), empty_clears=True)
STATE = _stream("state", "workers/{worker}/state", m.WorkerState, _PUBLIC)
HELD = _event("held", "workers/{worker}/held", m.HeldJobs, _FROM_WORKER)
PROBE = _stream("probe", "workers/{worker}/probe", m.Probe, _FROM_WORKER)
ECHO = _stream("echo", "workers/{worker}/echo", m.Probe, _TO_WORKER)
ASSIGN = _event("assign", "workers/{worker}/assign", m.Assignment, _TO_WORKER)
WORKER_CANCEL = _event("worker-cancel", "workers/{worker}/cancel", m.WorkerCancel, _TO_WORKER)
SETTLED = _event("settled", "workers/{worker}/settled", m.Settled, _TO_WORKER)
COMMAND = _event("cmd", "workers/{worker}/cmd", m.WorkerCommand, _TO_WORKER)
DESIRED = _kept(
    _event("desired", "workers/{worker}/desired", m.DesiredModel, _TO_WORKER), empty_clears=True
)
CERTIFICATE_REQUEST = _event(
    "csr", "workers/{worker}/csr", m.CertificateRequest, (_W, (Role.AUTHORITY,))
)
JOIN = _event("join", "workers/{worker}/join", m.CertificateRequest, (_W, (Role.AUTHORITY,)))
CERTIFICATE = _event("cert", "workers/{worker}/cert", m.CertificateReply, (Role.AUTHORITY, (_W,)))
STARTED = _event("started", f"{_WORK}/started", m.JobStarted, _FROM_WORKER)
WORKER_TOKENS = _stream("worker-tok", f"{_WORK}/tok", m.WorkerTokenChunk, _FROM_WORKER)
DONE = _event("done", f"{_WORK}/done", m.JobDone, _FROM_WORKER)
FAILED = _event("failed", f"{_WORK}/failed", m.JobFailed, _FROM_WORKER)
ESCALATE = _event("escalate", f"{_WORK}/escalate", m.Escalation, _FROM_WORKER)
PROGRESS = _event("progress", f"{_WORK}/progress", m.JobProgress, _FROM_WORKER)

SUMMARY = _kept(_stream("summary", "fleet/summary", m.FleetSummary, _BROADCAST))
ROSTER = _kept(_stream("roster", "fleet/roster/{shard}", m.RosterShard, _BROADCAST))
EVENTS = _stream("events", "fleet/events", m.FleetEvents, _BROADCAST)
ALERTS = _kept(_event("alerts", "fleet/alerts/{alert}", m.Alert, _BROADCAST), empty_clears=True)
DISPATCHER = _kept(
    _event("dispatcher", "fleet/dispatcher", m.DispatcherPresence, (_X, (_W, _D, _V, _O, _A)))
)
HOME_ASSISTANT = _plain(
    _kept(
        _event("homeassistant", "homeassistant/device/{thing}/config", m.PlainText, _BROADCAST),
        empty_clears=True,
    )
)
VIEWER_REQUEST = _event("viewer-req", "viewer/{viewer}/req", m.AdminRequest, (_V, (_X,)))
VIEWER_REPLY = _event("viewer-res", "viewer/{viewer}/res", m.AdminReply, (_X, (_V,)))
OPERATOR_REQUEST = _event("operator-req", "operator/{operator}/req", m.AdminRequest, (_O, (_X,)))
OPERATOR_REPLY = _event("operator-res", "operator/{operator}/res", m.AdminReply, (_X, (_O,)))
ADMIN_REQUEST = _event("admin-req", "admin/{admin}/req", m.AdminRequest, (_A, (_X,)))
ADMIN_REPLY = _event("admin-res", "admin/{admin}/res", m.AdminReply, (_X, (_A,)))

REQUESTS: Final = {_V: VIEWER_REQUEST, _O: OPERATOR_REQUEST, _A: ADMIN_REQUEST}
"""Where each of those who look after the fleet asks: the topic says the role."""
REPLIES: Final = {_V: VIEWER_REPLY, _O: OPERATOR_REPLY, _A: ADMIN_REPLY}
"""Where it is answered."""

CATALOGUE: Final[tuple[Channel, ...]] = (
    ASK, ANSWER, SUBMIT, CANCEL, ACK, TOKENS, RESULT,
    PRESENCE, INFO, STATE, HELD, PROBE, ECHO, ASSIGN, WORKER_CANCEL, SETTLED, COMMAND, DESIRED,
    CERTIFICATE_REQUEST, JOIN, CERTIFICATE,
    STARTED, WORKER_TOKENS, DONE, FAILED, ESCALATE, PROGRESS,
    SUMMARY, ROSTER, EVENTS, ALERTS, DISPATCHER, HOME_ASSISTANT,
    *(channel for role in REQUESTS for channel in (REQUESTS[role], REPLIES[role])),
)  # fmt: skip


class Address(msgspec.Struct, frozen=True):
    """A topic, read: its channel and the ids in it ("" where the channel has none).

    Attributes:
        owner: The device, worker, viewer, operator, admin or shard the topic belongs to.
        job: Under `dev/` the device's job id, under `workers/` the dispatcher's job key.
    """

    channel: Channel
    owner: str = ""
    job: str = ""


class Topics:
    """Writes and reads topics below one root, e.g. `fleet/v1`."""

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        """Raise ConfigError if `root` has an empty level, a wildcard or starts with `$`."""
        if root.startswith("$") or not all(_LEVEL.match(level) for level in root.split("/")):
            raise ConfigError(
                f"topic root {root!r} is not usable",
                hint="give one or more plain levels such as fleet/v1",
            )
        self.root = root
        self._prefix = f"{root}/"
        self._prefix_chars = len(self._prefix)
        self._by_shape = {_key(c.template.split("/")): c for c in CATALOGUE}
        self._places = {c.name: _places(c.template) for c in CATALOGUE}
        self._formats = {
            c.name: self._prefix + re.sub(r"\{\w+\}", "{}", c.template) for c in CATALOGUE
        }

    def name(self, channel: Channel, *ids: str) -> str:
        """Return the topic of `channel` for these ids, in the template's order."""
        return self._formats[channel.name].format(*ids)

    def filter(self, channel: Channel, *ids: str) -> str:
        """Return a subscription filter; ids that are not given match anything."""
        places = channel.template.count("{")
        return self._formats[channel.name].format(*ids, *["+"] * (places - len(ids)))

    def client_id(self, identity: str) -> str:
        """Return the MQTT client id of a program: fleets that share a broker differ by root.

        Without slashes: the embedded broker refuses them in a client id.
        """
        if self.root == DEFAULT_ROOT:
            return identity
        return f"{self.root.replace('/', '.')}.{identity}"

    def parse(self, topic: str) -> Address:
        """Read a topic.

        Raises:
            ProtocolError: `unknown_topic` if no channel has this shape, `invalid_id` if an id has
                characters outside `[A-Za-z0-9_-]` or more than 36 of them.
        """
        if not topic.startswith(self._prefix):
            raise _unknown(topic)
        owned = _OWNED.fullmatch(topic, self._prefix_chars)
        if owned is not None:
            family, owner, job, verb = owned.groups()
            own_channel = self._by_shape.get(
                (5, family, "jobs", verb) if job else (3, family, verb)
            )
            if own_channel is not None:
                return Address(own_channel, owner, job or "")
        levels = topic[self._prefix_chars :].split("/")
        channel = self._by_shape.get(_key(levels))
        if channel is None:
            raise _unknown(topic)
        ids = [levels[place] for place in self._places[channel.name]]
        for value in ids:
            if not _ID.fullmatch(value):
                raise ProtocolError(
                    f"id {value[:64]!r} in a topic is not usable",
                    code="invalid_id",
                    hint="use 1 to 36 of the characters A-Z a-z 0-9 _ -",
                )
        return Address(channel, *ids)

    def accepts_reply(self, device: str, topic: str) -> bool:
        """Tell whether a reply for `device` may be sent to `topic`.

        Only inside the device's own subtree, which the broker's ACL bound to it (anything else
        would make the dispatcher publish where the device may not), and never where the
        dispatcher itself listens (an answer there would be read as the next question).
        """
        own = f"{self._prefix}dev/{device}/"
        if not topic.startswith(own) or re.search(r"[+#\x00]", topic) or len(topic) > 512:
            return False
        try:
            address = self.parse(topic)
        except ProtocolError as error:
            return error.code == "unknown_topic"
        return address.channel.sender is Role.DISPATCHER


def _unknown(topic: str) -> ProtocolError:
    return ProtocolError(f"no channel has the topic {topic[:200]!r}", code="unknown_topic")


def _places(template: str) -> tuple[int, ...]:
    return tuple(i for i, level in enumerate(template.split("/")) if level.startswith("{"))


def _key(levels: list[str]) -> tuple[int | str, ...]:
    """Reduce a topic to what names its channel: its length and its fixed levels.

    In every template the ids stand at the odd places 1 and 3, but for `fleet/roster/{shard}` and
    `fleet/alerts/{alert}`, where the id is last, and Home Assistant's own. Spelled out by length:
    each message passes here.
    """
    count = len(levels)
    if count == 5:
        return count, levels[0], levels[2], levels[4]
    if count == 3 and levels[0] != "fleet":
        return count, levels[0], levels[2]
    return (count, *levels[:2])
