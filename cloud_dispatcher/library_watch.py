"""Reads the offline answer library again when its file changes, with an alert while it is bad."""

from __future__ import annotations

from typing import Final

from cloud_dispatcher.ports import AnswerLibrary
from cloud_dispatcher.publisher import Publisher
from fleet_protocol.messages import Alert, Severity

LIBRARY_ALERT: Final = "library"
_LOOK_EVERY_MS: Final = 5_000


class LibraryWatch:
    """Looks at the library's file every few seconds."""

    def __init__(self, library: AnswerLibrary, publisher: Publisher) -> None:
        self._library = library
        self._publisher = publisher
        self._look_at_ms = 0

    def announce(self) -> None:
        """Say again how it stands: the broker may have forgotten its alerts."""
        self._look_at_ms = 0

    async def keep(self, now_ms: int) -> None:
        """Look, if it is time to."""
        if now_ms < self._look_at_ms:
            return
        must_tell, self._look_at_ms = self._look_at_ms == 0, now_ms + _LOOK_EVERY_MS
        changed, trouble = await self._library.refresh(), self._library.trouble
        if not (changed or must_tell):
            return
        if trouble is None:  # also clears what an earlier run of the dispatcher left behind
            self._publisher.clear_alert(LIBRARY_ALERT, now_ms)
            return
        entries = len(self._library)
        alert = Alert(
            id=LIBRARY_ALERT,
            severity=Severity.WARNING,
            title=f"The offline library cannot be used; {entries} entries that were good go on",
            detail=trouble.advice[:2_000],
            since_at_ms=now_ms,
        )
        self._publisher.alert(alert)
