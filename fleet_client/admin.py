"""The operator's side: requests to the dispatcher, answered one by one."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable
from typing import Self, TypedDict, Unpack

from msgspec.structs import replace

from fleet_client.credentials import broker_settings
from fleet_client.errors import DeniedError, JobTimeoutError
from fleet_client.link import LinkOptions, PahoLink
from fleet_protocol.access import Identity, check_identities
from fleet_protocol.codec import decode_as, encode
from fleet_protocol.errors import ConfigError, FleetError, ProtocolError, RejectedError
from fleet_protocol.messages import (
    AdminOp,
    AdminReply,
    AdminRequest,
    AnsweredBy,
    JobStatus,
    PrewarmAnswer,
    WorkerView,
)
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import REPLIES, REQUESTS, Role, Topics

_log = logging.getLogger("fleet_client")

_OTHERS_S = 2.0
"""How long the answers of the other dispatchers are waited for once one is there."""


class AdminFields(TypedDict, total=False):
    """What a request may name; see `fleet_protocol.messages.AdminRequest`."""

    job: str
    worker: str
    alert: str
    device: str
    status: JobStatus
    dead: bool
    route: AnsweredBy
    code: str
    text: str
    of_tenant: str
    since_ms: int
    until_ms: int
    jobs: tuple[str, ...]
    before: str
    after: str
    limit: int
    days: int
    answers: tuple[PrewarmAnswer, ...]
    tenant: str


class AdminClient:
    """Speaks to the dispatcher as one who looks after the fleet. Thread-safe; lifetime is `with`.

    Args:
        broker: Settings, or a URL.
        admin: Who we are: viewer, operator or admin, and with which id; an id alone is an admin's.
            It is the MQTT user where there is one, for an ACL binds the topics to that.
    """

    def __init__(
        self,
        broker: BrokerSettings | str,
        admin: Identity | str,
        *,
        connect_timeout_s: float = 10.0,
    ) -> None:
        me = Identity(role=Role.ADMIN, id=admin) if isinstance(admin, str) else admin
        check_identities([me])
        if me.role not in REQUESTS:
            raise ConfigError(
                f"{me.id} is a {me.role}, and asks nothing of the dispatcher here",
                hint=f"use an identity with one of the roles {', '.join(REQUESTS)}",
            )
        settings = broker_settings(broker)
        topics = Topics(settings.root)
        self._role = me.role
        self._topic = topics.name(REQUESTS[me.role], me.id)
        self._changed = threading.Condition()
        self._waiting: set[str] = set()
        self._replies: dict[str, list[AdminReply | FleetError]] = {}
        self._link = PahoLink(
            settings,
            self,
            LinkOptions(
                # Of its own: one operator may run several commands at a time.
                client_id=f"{me.id[:27]}-{secrets.token_hex(4)}",
                filters=(topics.filter(REPLIES[me.role], me.id),),
                connect_timeout_s=connect_timeout_s,
            ),
        )

    def __enter__(self) -> Self:
        self._link.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self._link.close()

    def request(
        self, op: AdminOp, *, timeout_s: float = 10.0, **fields: Unpack[AdminFields]
    ) -> AdminReply:
        """Ask the dispatcher to do something and return its answer.

        Raises:
            RejectedError: It said no; `code` says why.
            JobTimeoutError: It said nothing in time; the request may have been carried out.
        """
        req = secrets.token_hex(8)
        payload = encode(AdminRequest(req=req, op=op, **fields))
        self._waiting.add(req)
        try:
            self._link.publish(self._topic, payload, token=req)
            reply = self._await(req, timeout_s)
        finally:
            self._waiting.discard(req)
            self._replies.pop(req, None)
        if isinstance(reply, FleetError):
            raise reply
        if not reply.ok:
            raise RejectedError(
                reply.message or f"the dispatcher refused: {reply.code}",
                code=reply.code or "rejected",
            )
        return reply

    def workers(self, *, timeout_s: float = 10.0) -> tuple[WorkerView, ...]:
        """Return all workers by name, asked for page by page; raises as `request` does."""
        found, page = list[WorkerView](), AdminFields(limit=1_000)
        while True:
            reply = self.request(AdminOp.WORKERS_LIST, timeout_s=timeout_s, **page)
            found += reply.workers
            if reply.go_on is None:
                return tuple(found)
            page["after"] = reply.go_on

    def message_arrived(self, topic: str, payload: bytes) -> None:
        """Take a reply from the link."""
        try:
            reply = decode_as(AdminReply, payload)
        except ProtocolError as error:
            _log.warning("message.dropped topic=%s code=%s", topic, error.code)
            return
        self._put(reply.req, reply)

    def link_restored(self) -> None:
        """Nothing to say again: what a request does is not always harmless to do twice."""

    def publish_confirmed(self, token: object) -> None:
        """Nothing to do: the dispatcher's answer is what counts."""

    def publish_denied(self, token: object) -> None:
        """Take note that the broker refused a request."""
        self._put(
            str(token),
            DeniedError(
                f"the broker does not let us publish on {self._topic}",
                hint=f"the broker does not know this identity as {self._role}: `fleet pki ls`",
            ),
        )

    def _put(self, req: str, reply: AdminReply | FleetError) -> None:
        with self._changed:
            if req in self._waiting:
                self._replies.setdefault(req, []).append(reply)
                self._changed.notify_all()

    def _await(self, req: str, timeout_s: float) -> AdminReply | FleetError:
        with self._changed:
            if not self._changed.wait_for(lambda: req in self._replies, timeout_s):
                raise JobTimeoutError(
                    f"the dispatcher did not answer within {timeout_s:g} s",
                    hint="see whether it is online: `fleet doctor`",
                )
            first = self._replies[req][0]
            if isinstance(first, FleetError) or first.members <= 1:
                return first
            # Each of several dispatchers answers for its own workers.
            self._changed.wait_for(lambda: len(self._replies[req]) >= first.members, _OTHERS_S)
            return _joined(first, self._replies[req])


def _joined(first: AdminReply, replies: Iterable[AdminReply | FleetError]) -> AdminReply:
    """Return one answer of several dispatchers: where one could, the others need not."""
    answered = [reply for reply in replies if isinstance(reply, AdminReply) and reply.ok]
    views = {view.worker: view for reply in answered for view in reply.workers}
    # Behind the end of the shortest page there may be some that were not told yet.
    go_on = min((reply.go_on for reply in answered if reply.go_on is not None), default=None)
    names = sorted(name for name in views if go_on is None or name <= go_on)
    return replace(
        answered[0] if answered else first,
        workers=tuple(views[name] for name in names),
        alerts=tuple(alert for reply in answered for alert in reply.alerts),
        go_on=go_on,
    )
