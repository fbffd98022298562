"""Inquiries in a task of their own: whoever looks through all jobs keeps no job waiting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from cloud_dispatcher.alert_watch import AlertWatch
from cloud_dispatcher.inquiries import Inquiries
from cloud_dispatcher.intake import AlertsAsked, Request, RequestRefused
from cloud_dispatcher.publisher import Publisher
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.access import Identity
from fleet_protocol.errors import BusClosedError, FleetError
from fleet_protocol.roles import as_seen_by

_log = structlog.get_logger(__name__)

_WAITING_MOST: Final = 500


class InquiryDesk:
    """Answers one after the other, in the order in which they came."""

    def __init__(
        self,
        inquiries: Inquiries,
        alerts: AlertWatch,
        publisher: Publisher,
        inquired: Callable[[Identity, m.AdminRequest, str], None],
    ) -> None:
        """Make it.

        Args:
            inquiries: Answers what the store is asked.
            alerts: Answers what is asked of alerts.
            publisher: Tells the answers.
            inquired: See `Outside`.
        """
        self._inquiries = inquiries
        self._alerts = alerts
        self._publisher = publisher
        self._inquired = inquired
        self._waiting: asyncio.Queue[Request] = asyncio.Queue(_WAITING_MOST)

    def take(self, requests: Iterable[Request]) -> None:
        """Let these be answered, after those before them; where too many wait, refuse them."""
        for request in requests:
            try:
                self._waiting.put_nowait(request)
            except asyncio.QueueFull:
                message = f"{_WAITING_MOST} requests wait already; ask again in a moment"
                self._tell(request, _refusal(request, "busy", message))

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            request = await self._waiting.get()
            try:
                self._tell(request, await self._answer(request))
            finally:
                self._waiting.task_done()

    async def finish(self) -> None:
        """Wait until all are answered that were taken."""
        await self._waiting.join()

    async def _answer(self, request: Request) -> m.AdminReply:
        try:
            if isinstance(request, AlertsAsked):
                return await self._alerts.answer(request)
            return await self._inquiries.answer(request)
        except FleetError as error:
            return _refusal(request, error.code, error.advice)
        except Exception:  # noqa: BLE001 - logged with its trace; see below
            # A row that cannot be read must cost this one answer, not the dispatcher.
            _log.exception("inquiry.broke", admin=request.admin)
            return _refusal(request, "internal", "the dispatcher's log says what went wrong")

    def _tell(self, request: Request, reply: m.AdminReply) -> None:
        reply = as_seen_by(request.role, reply)
        with contextlib.suppress(BusClosedError):
            self._publisher.send(topics.REPLIES[request.role], reply, request.admin)
        if request.request is not None:
            who = Identity(role=request.role, id=request.admin)
            self._inquired(who, request.request, reply.code)


def _refusal(request: Request, code: str, message: str) -> m.AdminReply:
    req = request.req if isinstance(request, RequestRefused) else request.request.req
    return m.AdminReply(req=req, ok=False, code=code[:64], message=message[:2_000])
