"""The audit log on the disk: a file a UTC day, in a folder for its owner alone.

Lines are written and flushed to the disk about once a second, in a thread of their own, so that no
job waits for it; a power cut can cost the last second of the log, and never bends what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeAlias

import msgspec
import structlog

from cloud_dispatcher.core.commands import AnyCommand, SaveJob
from cloud_dispatcher.core.events import AdminAsked, AnyEvent, JobSubmitted
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.observers import just_finished
from fleet_protocol.audit import (
    GENESIS,
    KEY_BYTES,
    AuditEntry,
    digest,
    parse_key,
    read_line,
    sealed,
)
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import AdminRequest, JobResult

_log = structlog.get_logger(__name__)

_FLUSH_S: Final = 1.0
_WAITING_MOST: Final = 200_000
"""Entries that wait for a disk that takes none; beyond it they are lost, and the log says so."""

_Waiting: TypeAlias = tuple[int, str, dict[str, Any]]
"""When, what, and its fields."""


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
    keep_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 180


class AuditFile:
    """Writes down what was decided. An observer; lifetime is `async with`.

    Args:
        settings: Without a folder nothing is written.
        wall_ms: UTC epoch milliseconds.
    """

    def __init__(self, settings: AuditSettings, *, wall_ms: Callable[[], int] = _wall_ms) -> None:
        self._is_kept = settings.folder is not None
        self._folder = Path(settings.folder or "").expanduser()
        key_file = settings.key_file
        self._key_file = (
            self._folder / "audit.key" if key_file is None else Path(key_file).expanduser()
        )
        self._keep = timedelta(days=settings.keep_days)
        self._wall_ms = wall_ms
        self._key = b""
        self._seal, self._seq = GENESIS, 0
        self._waiting: list[_Waiting] = []
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._writing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Go on where the log ends; raises ConfigError where it cannot be written."""
        if not self._is_kept:
            return self
        try:
            torn_bytes = self._open()
        except OSError as error:
            raise ConfigError(
                f"the audit log cannot be kept in {self._folder}: {error.strerror or error}",
                code="audit_unwritable",
                hint="check audit.folder and audit.key_file, and who may write them",
            ) from error
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
            self.asked(event.admin, event.request)
        for job, result in just_finished(event, commands, now_ms):
            self.note("job.finished", _ended(job, result))

    def asked(self, admin: str, request: AdminRequest) -> None:
        """Note what an operator asked for."""
        about = {"admin": admin, "op": request.op.value, "req": request.req}
        named = {"job": request.job, "worker": request.worker, "device": request.device}
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
            "prompt": digest(self._key, text),
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
            await loop.run_in_executor(self._writer, self._write, batch)
        except OSError as error:
            _log.error("audit.not_written", entries=len(batch), error=str(error))
            self._waiting = [entry for entry in batch if entry[1] != "lost"] + self._waiting
            if self._timer is None:
                self._timer = loop.call_later(_FLUSH_S, self._begin_flush)
        else:
            self._lost = 0

    def _write(self, batch: Sequence[_Waiting]) -> None:
        """Append a batch, all of it or nothing."""
        path = self._folder / f"{_day(batch[-1][0])}.log"
        old = [] if path.exists() else self._too_old(batch[-1][0])
        batch = [*(_pruned(file, batch[-1][0]) for file in old), *batch]
        seal, seq, lines = self._seal, self._seq, list[bytes]()
        for at_ms, what, about in batch:
            seq += 1
            entry = AuditEntry(seq=seq, at_ms=at_ms, what=what, about=about)
            seal, line = sealed(self._key, seal, entry)
            lines.append(line + b"\n")
        _append(path, b"".join(lines))
        self._seal, self._seq = seal, seq
        for file in old:
            file.unlink()

    def _too_old(self, now_ms: int) -> list[Path]:
        """Return the files that go; they are looked for once a day, with its first line."""
        oldest = f"{datetime.fromtimestamp(now_ms / 1_000, UTC) - self._keep:%Y-%m-%d}.log"
        return [path for path in _files(self._folder) if path.name < oldest]

    def _open(self) -> int:
        """Read where the log ends, and cut off half a line; return how many bytes that were."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = _make_key(self._key_file)
        torn_bytes = 0
        for path in reversed(_files(self._folder)):
            data = path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end < len(data):
                torn_bytes = len(data) - end
                os.truncate(path, end)
                _log.warning("audit.torn", file=path.name, bytes=torn_bytes)
            last = _last_line(path, data[:end])
            if last is not None:
                self._seal, self._seq = last[0], last[1].seq
                break
        return torn_bytes


def _make_key(path: Path) -> bytes:
    """Return the audit key, made if there is none; raises ConfigError, OSError."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
    return parse_key(path.read_text("utf-8", "replace"))


def _append(path: Path, data: bytes) -> None:
    """Append to a file and have it on the disk, all of it or nothing; raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        is_whole = os.write(descriptor, data) == len(data)
        if is_whole:
            os.fdatasync(descriptor)
        else:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
    if not is_whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pruned(path: Path, now_ms: int) -> _Waiting:
    last = _last_line(path, path.read_bytes())
    about = {} if last is None else {"seal": last[0], "seq": last[1].seq}
    return now_ms, "pruned", {"file": path.name, **about}


def _day(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d}"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.log"))


def _last_line(path: Path, data: bytes) -> tuple[str, AuditEntry] | None:
    lines = data.splitlines()
    try:
        return read_line(lines[-1]) if lines else None
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the audit log {path} is damaged: {error}",
            code="audit_damaged",
            hint="move the folder away and look at it with `fleet audit verify`",
        ) from error


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
