"""Patience with a store that cannot be written: nothing is told, all is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from cloud_dispatcher.ports import StoreUnavailableError
from cloud_dispatcher.publisher import Publisher
from fleet_protocol import messages as m
from fleet_protocol.errors import FleetError

_log = structlog.get_logger(__name__)

_R = TypeVar("_R")

STORE_ALERT: Final = "store"
_RETRY_FIRST_S: Final = 0.1
_RETRY_CAP_S: Final = 5.0


class StoppedError(FleetError):
    """The dispatcher was stopped while its store could not be written; the turn was not told."""

    code = "stopped"


class Insistence:
    """Repeats a call to the store until it works, with an alert that says what to do."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        clock: Callable[[], int],
        stopping: asyncio.Event,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`alive` is called with each try: whoever waits for its disk is not hung."""
        self._publisher = publisher
        self._clock = clock
        self._stopping = stopping
        self._alive = alive
        self._failing = 0
        self._since_at_ms = 0

    async def on(self, call: Callable[[], Awaitable[_R]]) -> _R:
        """Return what the call returns, once it does.

        Raises:
            StoppedError: We were told to stop before it worked.
        """
        pause_s, failed = _RETRY_FIRST_S, False
        try:
            while True:
                try:
                    return await call()
                except StoreUnavailableError as error:
                    self._alive()
                    _log.error("store.unavailable", error=str(error), hint=error.hint)
                    if not failed:
                        failed = True
                        self._alert(error)
                    if await self._stopped_within(pause_s):
                        raise StoppedError("stopped before the store worked again") from error
                    pause_s = min(_RETRY_CAP_S, 2 * pause_s)
        finally:
            if failed:
                self._clear()

    def announce(self) -> None:
        """Say how it stands, also to a broker that forgot or remembers an earlier run's alert."""
        if self._failing:
            self._publisher.alert(self._told)
        else:
            self._publisher.clear_alert(STORE_ALERT, self._clock())

    def _alert(self, error: StoreUnavailableError) -> None:
        """Raise the alert with the first call that fails."""
        self._failing += 1
        if self._failing > 1:
            return
        self._since_at_ms = self._clock()
        self._told = m.Alert(
            id=STORE_ALERT,
            severity=m.Severity.CRITICAL,
            title="The job store cannot be used: no job is accepted or answered",
            detail=f"{error}; {error.hint}"[:2_000],
            since_at_ms=self._since_at_ms,
        )
        self.announce()

    def _clear(self) -> None:
        """Clear the alert when no call fails any more, or we stop: then nobody knows."""
        self._failing -= 1
        if self._failing == 0:
            _log.info("store.settled", after_ms=self._clock() - self._since_at_ms)
            self.announce()

    async def _stopped_within(self, pause_s: float) -> bool:
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
