"""An audit log on the disk: a file a UTC day, in a folder for its owner alone."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog

from fleet_protocol.audit import GENESIS, KEY_BYTES, AuditEntry, parse_key, read_line, sealed
from fleet_protocol.errors import ConfigError
from fleet_protocol.file_lock import FileLock

_log = structlog.get_logger(__name__)

KEEP_DAYS: Final = 180

Noted: TypeAlias = tuple[int, str, dict[str, Any]]
"""When (UTC epoch milliseconds), what, and its fields."""


class AuditFolder:
    """Writes a log on from where it ends. One program and one thread at a time.

    Args:
        folder: Made where there is none.
        key_file: The key of the seals, made where there is none; None: `audit.key` in the folder.
        keep_days: Older files are removed, and the log says so.
    """

    def __init__(
        self, folder: Path, key_file: Path | None = None, *, keep_days: int = KEEP_DAYS
    ) -> None:
        self.folder = folder
        self._key_file = folder / "audit.key" if key_file is None else key_file
        self._keep = timedelta(days=keep_days)
        self._seal, self._seq = GENESIS, 0
        self._newest = ""
        self._lock = FileLock(folder / "lock")
        self.key = b""

    def open(self) -> int:
        """Read where the log ends, and cut off half a line; return how many bytes that were.

        Raises:
            ConfigError: `audit_unwritable`, `audit_in_use`, `audit_damaged`, `bad_key`.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._be_alone()
            self.key = _make_key(self._key_file)
            return self._find_end()
        except ConfigError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ConfigError(
                f"the audit log cannot be kept in {self.folder}: {error.strerror or error}",
                code="audit_unwritable",
                hint="check the folder and the key file of the audit log, and who may write them",
            ) from error

    def _be_alone(self) -> None:
        """Two writers would break the chain."""
        if holder := self._lock.take():
            raise ConfigError(
                f"another program (process {holder}) writes the audit log in {self.folder}",
                code="audit_in_use",
                hint="give each program a folder of its own",
            )

    def close(self) -> None:
        """Let another program have it; a second time changes nothing."""
        self._lock.let_go()

    def append(self, batch: Sequence[Noted]) -> None:
        """Write a batch and have it on the disk, all of it or nothing; raises OSError."""
        # Files are read in the order of their names: after a step back the newest one goes on.
        newest = max(self._newest, f"{_day(batch[-1][0])}.log")
        path = self.folder / newest
        old = [] if path.exists() else self._too_old(newest)
        batch = [*(_pruned(file, batch[-1][0]) for file in old), *batch]
        seal, seq, lines = self._seal, self._seq, list[bytes]()
        for at_ms, what, about in batch:
            seq += 1
            entry = AuditEntry(seq=seq, at_ms=at_ms, what=what, about=about)
            seal, line = sealed(self.key, seal, entry)
            lines.append(line + b"\n")
        _append(path, b"".join(lines))
        self._seal, self._seq, self._newest = seal, seq, newest
        for file in old:
            file.unlink()

    def _too_old(self, newest: str) -> list[Path]:
        """Return the files that go; they are looked for once a day, with its first line.

        A day counts as no more than one after the last: a clock that is years ahead costs nothing
        if it is set right within a day.
        """
        today = _date(newest)
        if self._newest:
            today = min(today, _date(self._newest) + timedelta(days=1))
        return [path for path in _files(self.folder) if _date(path.name) < today - self._keep]

    def _find_end(self) -> int:
        torn_bytes, files = 0, _files(self.folder)
        self._newest = files[-1].name if files else ""
        for path in reversed(files):
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
        try:
            _write_all(descriptor, data)
        except OSError:
            os.ftruncate(descriptor, size)  # it comes again, and must not be there twice
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fdatasync(descriptor)


def _pruned(path: Path, now_ms: int) -> Noted:
    last = _last_line(path, path.read_bytes())
    about = {} if last is None else {"seal": last[0], "seq": last[1].seq}
    return now_ms, "pruned", {"file": path.name, **about}


def _day(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d}"


def _date(name: str) -> date:
    return date.fromisoformat(name.removesuffix(".log"))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].log"))


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
