"""Alerts between two runs: a small file beside the job store, replaced as a whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from cloud_dispatcher.ports import StoreUnavailableError
from fleet_pki.files import keep_names
from fleet_protocol.codec import UNREADABLE
from fleet_protocol.messages import Alert

_log = structlog.get_logger(__name__)


class AlertFile:
    """Keeps alerts. An `AlertArchive`.

    Args:
        path: Of the file. One that cannot be read is put aside, for its history is worth less than
            a dispatcher that starts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Its own: turns wait for it, and the loop's threads may all be waiting for a name server.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alerts")

    def load(self) -> tuple[Alert, ...]:
        """Return what an earlier run kept."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Alert, ...])
        except FileNotFoundError:
            return ()
        except (OSError, *UNREADABLE) as error:
            aside = self._path.with_suffix(f"{self._path.suffix}.unreadable")
            _log.warning("alerts.unreadable", kept_as=str(aside), error=str(error))
            with suppress(OSError):
                self._path.replace(aside)
            return ()

    async def save(self, views: Sequence[Alert]) -> None:
        """Put them on the disk.

        Raises:
            StoreUnavailableError: They are not; what was there before still is.
        """
        try:
            body = msgspec.json.encode(views)
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, body)
        except OSError as error:
            raise StoreUnavailableError(
                f"the alerts cannot be written to {self._path}: {error}",
                hint="make room on that disk, or let the dispatcher's user write there",
            ) from error

    def _write(self, body: bytes) -> None:
        beside = self._path.with_suffix(f"{self._path.suffix}.new")
        with beside.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        keep_names(self._path.parent)
