"""From what the bus delivers to what the engine understands.

Nothing that arrives can stop the dispatcher: what cannot be read is counted, logged without its
content and dropped; a device that submitted it is told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
import structlog

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.outbox import UNHEARD
from cloud_dispatcher.core.spending import LOCAL_PREFIX
from cloud_dispatcher.keys import KeyMint
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import Confirmed, Delivery, Refused
from fleet_protocol.errors import FleetError, ProtocolError, RejectedError
from fleet_protocol.roles import require
from fleet_protocol.topics import Address, Role, Topics

_log = structlog.get_logger(__name__)

_NO_REPLY: Final = ReplyTo()
_PLAIN: Final = ReplyTo(plain=True)
_FROM_DEVICES: Final = (topics.SUBMIT, topics.ASK, topics.CANCEL)
_SUBMIT_OF_ANY_ID: Final = re.compile(r"dev/([A-Za-z0-9_-]{1,36})/jobs/([^/]{1,200})/submit")


class EchoAsked(msgspec.Struct, frozen=True):
    """A worker measures its link: the same bytes go back, past the engine and the store."""

    worker: m.WorkerId
    payload: bytes


class _Asked(msgspec.Struct, frozen=True):
    """What somebody asked who looks after the fleet.

    Attributes:
        admin: Whose id it is, by the topic.
        role: As what, by the topic too.
    """

    admin: str
    request: m.AdminRequest
    role: Role = Role.ADMIN


class JobsListed(_Asked, frozen=True):
    """An operator asked for stored jobs: answered from the store, past the engine."""


class PurgeAsked(_Asked, frozen=True):
    """An operator wants a dead letter forgotten: the store does, past the engine."""


class CostsAsked(_Asked, frozen=True):
    """An operator asked what the cloud costs: answered from the store, past the engine."""


class CacheAsked(_Asked, frozen=True):
    """An operator asked what is cached: answered from the store, past the engine."""


class AskAgain(_Asked, frozen=True):
    """An operator wants the most frequent questions asked before anybody does."""


class AlertsAsked(_Asked, frozen=True):
    """An operator asked for alerts, or looks after one: answered by whoever raised them."""


class RequestRefused(msgspec.Struct, frozen=True):
    """A request that is not for its role, or that cannot be read but for its name: it is told why.

    Attributes:
        request: None where it cannot be read.
    """

    admin: str
    role: Role
    req: str
    code: str
    message: str
    request: m.AdminRequest | None = None


Inquiry: TypeAlias = JobsListed | PurgeAsked | CostsAsked | CacheAsked | AskAgain | RequestRefused
"""What is answered past the engine, mostly by the store."""

Request: TypeAlias = Inquiry | AlertsAsked

Intaken: TypeAlias = e.AnyEvent | EchoAsked | Request


_INQUIRIES: Final[Mapping[m.AdminOp, Callable[[str, m.AdminRequest, Role], Request]]] = {
    m.AdminOp.JOBS_LIST: JobsListed,
    m.AdminOp.JOB_PURGE: PurgeAsked,
    m.AdminOp.COSTS: CostsAsked,
    m.AdminOp.CACHE_STATS: CacheAsked,
    m.AdminOp.CACHE_ASK_AGAIN: AskAgain,
    m.AdminOp.ALERTS_LIST: AlertsAsked,
    m.AdminOp.ALERT_ACK: AlertsAsked,
}


class _Named(msgspec.Struct):
    req: m.Id


def _cancelled(at: Address, _cancel: m.JobCancel) -> e.AnyEvent:
    return e.JobCancelled(device=m.DeviceId(at.owner), id=m.JobId(at.job))


def _presence(at: Address, presence: m.Presence | None) -> e.AnyEvent:
    return e.PresenceChanged(worker=m.WorkerId(at.owner), presence=presence)


def _info(at: Address, info: m.WorkerInfo | None) -> e.AnyEvent:
    return e.InfoReceived(worker=m.WorkerId(at.owner), info=info)


def _state(at: Address, state: m.WorkerState) -> e.AnyEvent:
    return e.StateReceived(worker=m.WorkerId(at.owner), state=state)


def _held(at: Address, held: m.HeldJobs) -> e.AnyEvent:
    return e.HeldReceived(worker=m.WorkerId(at.owner), held=held)


def _started(at: Address, started: m.JobStarted) -> e.AnyEvent:
    worker, job = m.WorkerId(at.owner), m.JobKey(at.job)
    return e.StartReceived(worker=worker, job=job, attempt=started.attempt)


def _progress(at: Address, progress: m.JobProgress) -> e.AnyEvent:
    worker, job = m.WorkerId(at.owner), m.JobKey(at.job)
    return e.ProgressReceived(worker=worker, job=job, attempt=progress.attempt)


def _tokens(at: Address, chunk: m.WorkerTokenChunk) -> e.AnyEvent:
    return e.TokensReceived(worker=m.WorkerId(at.owner), job=m.JobKey(at.job), chunk=chunk)


def _done(at: Address, done: m.JobDone) -> e.AnyEvent:
    return e.DoneReceived(worker=m.WorkerId(at.owner), job=m.JobKey(at.job), done=done)


def _failed(at: Address, failure: m.JobFailed) -> e.AnyEvent:
    return e.FailureReceived(worker=m.WorkerId(at.owner), job=m.JobKey(at.job), failure=failure)


def _escalated(at: Address, escalation: m.Escalation) -> e.AnyEvent:
    worker, job = m.WorkerId(at.owner), m.JobKey(at.job)
    return e.EscalationReceived(worker=worker, job=job, escalation=escalation)


_READERS: Final[Mapping[str, Callable[[Address, Any], e.AnyEvent]]] = {
    topics.CANCEL.name: _cancelled,
    topics.PRESENCE.name: _presence,
    topics.INFO.name: _info,
    topics.STATE.name: _state,
    topics.HELD.name: _held,
    topics.STARTED.name: _started,
    topics.WORKER_TOKENS.name: _tokens,
    topics.DONE.name: _done,
    topics.FAILED.name: _failed,
    topics.ESCALATE.name: _escalated,
    topics.PROGRESS.name: _progress,
}
"""What a message means, by channel; `codec.decode` made its type what the channel says."""


def read_confirmation(confirmed: Confirmed) -> e.AnyEvent:
    """Return what the broker's word on a result means."""
    job = m.JobKey(str(confirmed.token))
    return e.ResultConfirmed(job=job) if confirmed.heard else e.ResultRefused(job=job, code=UNHEARD)


def read_refusal(refused: Refused) -> e.ResultRefused | None:
    """Return what a refusal means; None: it was no result, and is only logged."""
    _log.error(
        "publication.refused",
        code=refused.code,
        topic=refused.topic,
        hint="the broker's access list must let the dispatcher write below the topic root",
    )
    if refused.token is None:
        return None
    return e.ResultRefused(job=m.JobKey(str(refused.token)), code=refused.code)


class Intake:
    """Reads deliveries.

    Attributes:
        dropped: Count of what could not be used, by code.
    """

    def __init__(self, names: Topics, mint: KeyMint) -> None:
        self.dropped: Counter[str] = Counter()
        self._topics = names
        self._mint = mint

    def read(self, delivery: Delivery, now_ms: int) -> Intaken | None:
        """Return what a delivery means; None if it means nothing and was dropped."""
        try:
            address = self._topics.parse(delivery.topic)
        except ProtocolError as error:
            return self._bad_topic(delivery, error)
        channel = address.channel
        refusal = _refusal(delivery, address)
        if refusal:
            self._drop(delivery, refusal)
            return None
        if channel is topics.SUBMIT or channel is topics.ASK:
            return self._submission(address, delivery, now_ms)
        if channel is topics.PROBE:
            return self._probe(address, delivery)
        if channel.message is m.AdminRequest:
            return self._request(address, delivery)
        return self._message(address, delivery)

    def _message(self, address: Address, delivery: Delivery) -> Intaken | None:
        read = _READERS.get(address.channel.name)
        if read is None:
            self._drop(delivery, "not_for_us")
            return None
        if not delivery.payload and address.channel.empty_clears:
            return read(address, None)
        try:
            return read(address, codec.decode(address.channel, delivery.payload))
        except ProtocolError as error:
            self._drop(delivery, error.code)
            return None

    def _submission(self, address: Address, delivery: Delivery, now_ms: int) -> e.AnyEvent:
        key, device = m.JobKey(self._mint.mint(now_ms)), m.DeviceId(address.owner)
        plain = address.channel is topics.ASK
        job_id = m.JobId(key if plain else address.job)
        reply = _PLAIN if plain else _NO_REPLY
        try:
            if delivery.response_topic is not None:
                reply = self._reply_to(device, delivery, plain=plain)
            submit = codec.decode(address.channel, delivery.payload)
        except ProtocolError as error:
            self._drop(delivery, error.code)
            return e.SubmissionMalformed(
                device=device, id=job_id, reply=reply, code=error.code, message=_told(error)
            )
        assert isinstance(submit, m.JobSubmit)  # noqa: S101 - the catalogue says so
        return e.JobSubmitted(key=key, device=device, id=job_id, submit=submit, reply=reply)

    def _reply_to(self, device: str, delivery: Delivery, *, plain: bool) -> ReplyTo:
        topic = delivery.response_topic or ""
        if not self._topics.accepts_reply(device, topic):
            # We may publish where this device may not: without this rule it could make us.
            _log.warning("security.response_topic_refused", device=device, topic=topic[:200])
            raise ProtocolError(
                "the response topic lies outside the device's own answer topics",
                code="response_topic_refused",
                hint=f"use a topic below {self._topics.root}/dev/{device}/",
            )
        return ReplyTo(plain=plain, topic=topic, correlation_data=delivery.correlation_data)

    def _probe(self, address: Address, delivery: Delivery) -> EchoAsked | None:
        if len(delivery.payload) > topics.PROBE.max_bytes:
            self._drop(delivery, "too_large")
            return None
        return EchoAsked(m.WorkerId(address.owner), delivery.payload)

    def _request(self, address: Address, delivery: Delivery) -> Intaken | None:
        admin, role = address.owner, address.channel.sender
        try:
            request = codec.decode(address.channel, delivery.payload)
        except ProtocolError as error:
            self._drop(delivery, error.code)
            try:
                named = msgspec.json.decode(delivery.payload, type=_Named)
            except codec.UNREADABLE:
                return None
            return RequestRefused(admin, role, named.req, error.code, _told(error))
        assert isinstance(request, m.AdminRequest)  # noqa: S101 - the catalogue says so
        try:
            require(role, request.op)
        except RejectedError as error:
            self._drop(delivery, error.code)
            return RequestRefused(admin, role, request.req, error.code, _told(error), request)
        inquiry = _INQUIRIES.get(request.op)
        if inquiry is not None:
            return inquiry(admin, request, role)
        return e.AdminAsked(admin=admin, role=role, request=request)

    def _bad_topic(self, delivery: Delivery, error: ProtocolError) -> Intaken | None:
        """Tell a device whose own job id is unusable; its subtree is its own to be told in."""
        self._drop(delivery, error.code)
        found = _SUBMIT_OF_ANY_ID.fullmatch(delivery.topic.removeprefix(f"{self._topics.root}/"))
        if error.code != "invalid_id" or found is None:
            return None
        return e.SubmissionMalformed(
            device=m.DeviceId(found[1]),
            id=m.JobId(found[2]),
            reply=_NO_REPLY,
            code=error.code,
            message=_told(error),
        )

    def _drop(self, delivery: Delivery, code: str) -> None:
        self.dropped[code] += 1
        _log.warning(
            "delivery.refused",
            code=code,
            topic=delivery.topic[:200],
            payload_bytes=len(delivery.payload),
        )


def _refusal(delivery: Delivery, address: Address) -> str:
    """Return why a delivery means nothing, whatever it says; empty: it may mean something."""
    if delivery.retain and not address.channel.retain:
        # An old copy, kept by the broker because its sender set a flag it should not have.
        return "retained"
    if address.owner.startswith(LOCAL_PREFIX) and address.channel in _FROM_DEVICES:
        # Nobody on the broker asks, or cancels, in the name of who asks over HTTP.
        return "local_device"
    return ""


def _told(error: FleetError) -> str:
    return error.advice[:1_000]
