"""Keeps the log of alerts on the disk, and answers operators about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from msgspec.structs import replace

from cloud_dispatcher.intake import AlertsAsked
from cloud_dispatcher.ports import AlertArchive, StoreUnavailableError
from cloud_dispatcher.publisher import Publisher
from fleet_protocol import messages as m

_log = structlog.get_logger(__name__)

_TRY_EVERY_MS: Final = 5_000


class AlertWatch:
    """Saves what changed, and ends what an earlier run left firing and nobody speaks of."""

    def __init__(
        self,
        publisher: Publisher,
        archive: AlertArchive | None,
        *,
        clock: Callable[[], int],
        members: Callable[[], int],
    ) -> None:
        """Make it.

        Args:
            publisher: Who raises alerts.
            archive: None: they are forgotten with the process.
            clock: UTC epoch milliseconds.
            members: How many dispatchers there are; 0: only this one.
        """
        self._publisher = publisher
        self._clock = clock
        self._members = members
        self._alerts = publisher.alerts
        self._archive = archive
        self._saved = self._alerts.version
        self._try_at_ms = 0

    def announce(self) -> None:
        """Whoever raised an alert says it again."""

    async def keep(self, now_ms: int) -> None:
        """Save, if there is something new."""
        for name in self._alerts.forgotten(now_ms):
            self._publisher.clear_alert(name, now_ms)
        if self._saved == self._alerts.version or now_ms < self._try_at_ms:
            return
        try:
            await self._save()
        except StoreUnavailableError as error:
            self._try_at_ms = now_ms + _TRY_EVERY_MS
            _log.warning("alerts.not_saved", error=str(error), hint=error.hint)

    async def answer(self, inquiry: AlertsAsked) -> m.AdminReply:
        """Return what an operator is told who listed alerts, or looks after one.

        Several dispatchers answer, each for its own.
        """
        asked, members = inquiry.request, self._members()
        if asked.op is m.AdminOp.ALERTS_LIST:
            views = tuple(map(self._signed, self._alerts.views()[: asked.limit]))
            return m.AdminReply(req=asked.req, ok=True, alerts=views, members=members)
        known = self._acknowledged(inquiry)
        if known is None:
            return m.AdminReply(
                req=asked.req,
                ok=False,
                code="unknown_alert",
                message=f"no alert {asked.alert!r} fires: `fleet alerts ls` names those that do",
                members=members,
            )
        try:
            await self._save()
        except StoreUnavailableError as error:
            message = f"noted, but not on the disk yet: {error}"
            _log.warning("alerts.not_saved", error=str(error), hint=error.hint)
        else:
            message = f"{known.acked_by} looks after it"
        self._publisher.say_alert(known.id)
        view = self._signed(known)
        return m.AdminReply(
            req=asked.req, ok=True, message=message, alerts=(view,), members=members
        )

    def _acknowledged(self, inquiry: AlertsAsked) -> m.Alert | None:
        name = self._publisher.unsigned(inquiry.request.alert or "")
        if name is None:
            return None
        return self._alerts.acknowledge(name, by=inquiry.admin, now_ms=self._clock())

    async def _save(self) -> None:
        version = self._alerts.version
        if self._archive is not None:
            await self._archive.save(self._alerts.views())
        self._saved = version

    def _signed(self, view: m.Alert) -> m.Alert:
        """Several dispatchers have alerts of the same name: what is told is the topic's."""
        return replace(view, id=self._publisher.signed(view.id))
