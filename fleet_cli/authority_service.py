"""The authority at work: answers the certificate requests of workers until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from fleet_cli.pki import Authority, read_certificate
from fleet_protocol import topics as t
from fleet_protocol.bus import BusEvent, Delivery, MessageBus, Publication, Session
from fleet_protocol.codec import CONTENT_TYPE_JSON, decode, encode
from fleet_protocol.errors import BusFullError, FleetError, ProtocolError
from fleet_protocol.messages import CertificateReply, CertificateRequest
from fleet_protocol.topics import Topics

SESSION_EXPIRY_S: Final = 86_400
"""The broker keeps the requests of a day in which the authority is away."""
_REPLY_EXPIRY_S: Final = 3_600
_log = structlog.get_logger()


def session_of(topics: Topics, identity: str) -> Session:
    """Return who the authority is to the broker."""
    return Session(
        client_id=topics.client_id(identity),
        subscriptions=(topics.filter(t.CERTIFICATE_REQUEST), topics.filter(t.JOIN)),
        expiry_s=SESSION_EXPIRY_S,
    )


class AuthorityService:
    """Renews on an entered bus, and lets newcomers in. The broker says who asks: topics are owned.

    It is no part of the dispatcher, which reads everybody's prompts and speaks to the internet:
    the key that can make anybody is in no process but this one.
    """

    def __init__(
        self, authority: Authority, bus: MessageBus, topics: Topics, *, wall_ms: Callable[[], int]
    ) -> None:
        self._authority = authority
        self._bus = bus
        self._topics = topics
        self._wall_ms = wall_ms
        self._reply: tuple[str, CertificateReply] | None = None

    async def run(self) -> None:
        """Answer until cancelled.

        Raises:
            BusClosedError: The broker closed us for good.
            RegistryUnavailableError: The registry cannot be opened.
        """
        loop = asyncio.get_running_loop()
        # One thread: SQLite's connection is its own, and what waits for the disk is not the loop.
        with ThreadPoolExecutor(1, thread_name_prefix="authority") as executor:
            await loop.run_in_executor(executor, self._authority.__enter__)
            try:
                while True:
                    for event in await self._bus.receive():
                        await loop.run_in_executor(executor, self._decide, event)
                        self._tell(event)
            finally:
                executor.submit(self._authority.__exit__)

    def _decide(self, event: BusEvent) -> None:
        self._reply = None
        if not isinstance(event, Delivery):
            return
        try:
            address = self._topics.parse(event.topic)
            request = decode(address.channel, event.payload)
        except ProtocolError as error:
            _log.warning("request.malformed", code=error.code, size_bytes=len(event.payload))
            return
        assert isinstance(request, CertificateRequest)  # noqa: S101 - the catalogue says so
        joins = address.channel is t.JOIN
        self._reply = (address.owner, self._answer(address.owner, request, joins=joins))

    def _answer(self, worker: str, request: CertificateRequest, *, joins: bool) -> CertificateReply:
        issue = self._authority.join if joins else self._authority.renew
        try:
            chain = issue(worker, request.csr.encode(), now_ms=self._wall_ms())
        except FleetError as error:
            _log.warning("certificate.refused", worker=worker, joins=joins, code=error.code)
            return CertificateReply(
                req=request.req, ok=False, code=error.code, message=error.advice[:1_000]
            )
        certificate = read_certificate(chain)
        _log.info(
            "certificate.issued",
            worker=worker,
            joins=joins,
            serial=f"{certificate.serial_number:x}",
            expires=certificate.not_valid_after_utc.isoformat(),
        )
        return CertificateReply(req=request.req, ok=True, chain=chain.decode())

    def _tell(self, event: BusEvent) -> None:
        """Acknowledge what is written down, and say what came of it."""
        if isinstance(event, Delivery):
            self._bus.acknowledge([event])
        if self._reply is None:
            return
        worker, reply = self._reply
        publication = Publication(
            topic=self._topics.name(t.CERTIFICATE, worker),
            payload=encode(reply),
            expiry_s=_REPLY_EXPIRY_S,
            content_type=CONTENT_TYPE_JSON,
        )
        # The worker asks again.
        with contextlib.suppress(BusFullError):
            self._bus.publish(publication)
