"""What the dispatcher notes in its audit log.

Lines are written and flushed to the disk about once a second, in a thread of their own, so that no
job waits for it; a power cut can cost the last second of the log, and never bends what is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final, Self

import msgspec
import structlog

from cloud_dispatcher.core.commands import AnyCommand, SaveJob
from cloud_dispatcher.core.events import AdminAsked, AnyEvent, JobSubmitted
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.observers import just_finished
from fleet_protocol.access import Identity
from fleet_protocol.audit import digest
from fleet_protocol.audit_folder import KEEP_DAYS, AuditFolder, Noted
from fleet_protocol.messages import AdminRequest, JobResult

_log = structlog.get_logger(__name__)

_FLUSH_S: Final = 1.0
_WAITING_MOST: Final = 200_000
"""Entries that wait for a disk that takes none; beyond it they are lost, and the log says so."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who asked for what, when, and what became of it; never the texts.

    Attributes:
        folder: Where the log is kept; None: there is none.
        key_file: The key of its seals, 64 hexadecimal digits; made if there is none. None:
            `audit.key` in the folder. Who can read it can write the log anew: keep it elsewhere.
        keep_days: Older files are removed, and the log says so.
    """

    folder: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    key_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    keep_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = KEEP_DAYS


class AuditFile:
    """Writes down what was decided. An observer; lifetime is `async with`.

    Args:
        settings: Without a folder nothing is written.
        wall_ms: UTC epoch milliseconds.
    """

    def __init__(self, settings: AuditSettings, *, wall_ms: Callable[[], int] = _wall_ms) -> None:
        self._is_kept = settings.folder is not None
        key_file = settings.key_file
        self._log = AuditFolder(
            Path(settings.folder or "").expanduser(),
            None if key_file is None else Path(key_file).expanduser(),
            keep_days=settings.keep_days,
        )
        self._wall_ms = wall_ms
        self._waiting: list[Noted] = []
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._writing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Go on where the log ends; raises ConfigError where it cannot be written."""
        if not self._is_kept:
            return self
        torn_bytes = self._log.open()
        self.note("started", {"torn_bytes": torn_bytes} if torn_bytes else {})
        await self._flush()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.note("stopped", {})
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await asyncio.wait({self._writing})
        await self._flush()
        self._writer.shutdown()
        self._log.close()

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Note jobs that were taken in, jobs that ended, and what operators had done."""
        if not self._is_kept:
            return
        if isinstance(event, JobSubmitted):
            for command in commands:
                if isinstance(command, SaveJob) and command.job.key == event.key:
                    self.note("job.accepted", self._asked(command.job))
                    break
        elif isinstance(event, AdminAsked):
            self.asked(Identity(role=event.role, id=event.admin), event.request)
        for job, result in just_finished(event, commands, now_ms):
            self.note("job.finished", _ended(job, result))

    def asked(self, who: Identity, request: AdminRequest, code: str = "") -> None:
        """Note what an operator asked for, and with which code it was refused, if it was."""
        about = {"admin": who.id, "role": who.role.value, "op": request.op.value}
        named = {"req": request.req, "job": request.job, "worker": request.worker}
        named |= {"device": request.device, "code": code}
        self.note("admin", about | {name: value for name, value in named.items() if value})

    def note(self, what: str, about: dict[str, Any]) -> None:
        """Let an entry wait for the next flush."""
        if not self._is_kept:
            return
        if len(self._waiting) >= _WAITING_MOST:
            self._lost += 1
            return
        self._waiting.append((self._wall_ms(), what, about))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_FLUSH_S, self._begin_flush)

    def _asked(self, job: Job) -> dict[str, Any]:
        submit = job.submit
        text = "\0".join(message.content for message in submit.conversation)
        return {
            "job": job.key,
            "device": job.device,
            "id": job.id,
            "prompt": digest(self._log.key, text),
            "chars": submit.prompt_chars,
            "model": submit.model,
            "privacy": submit.privacy.value,
            "escalate": submit.escalate.value,
        }

    # ---------------------------------------------------------------- on the disk

    def _begin_flush(self) -> None:
        self._timer = None
        self._writing = asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        """Write what waits; what cannot be written waits on."""
        batch, self._waiting = self._waiting, []
        if self._lost:
            batch.append((self._wall_ms(), "lost", {"entries": self._lost}))
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._log.append, batch)
        except OSError as error:
            _log.error("audit.not_written", entries=len(batch), error=str(error))
            self._waiting = [entry for entry in batch if entry[1] != "lost"] + self._waiting
            if self._timer is None:
                self._timer = loop.call_later(_FLUSH_S, self._begin_flush)
        else:
            self._lost = 0


def _ended(job: Job, result: JobResult) -> dict[str, Any]:
    said = {
        "job": job.key,
        "device": job.device,
        "id": job.id,
        "status": result.status.value,
        "by": result.answered_by and result.answered_by.value,
        "worker": result.worker,
        "model": result.model,
        "reason": result.reason and result.reason.value,
        "code": result.code,
        "attempt": job.attempt,
    }
    return {name: value for name, value in said.items() if value}
