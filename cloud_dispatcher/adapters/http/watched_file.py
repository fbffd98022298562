"""A small file that people edit while we run: read again when it changes, replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from fleet_pki.files import keep_names
from fleet_protocol.errors import ConfigError

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class WatchedFile(Generic[_T]):
    """What a file says now. A bad one changes nothing but the log.

    Args:
        read: Reads the file; raises ConfigError where it is missing or wrong.
        name: Of what is in it, for the log.

    Attributes:
        value: What `read` returned last.
    """

    def __init__(self, path: Path, read: Callable[[Path], _T], *, name: str) -> None:
        """Read it; who starts with a bad file would lock everybody out: ConfigError."""
        self._path = path
        self._read = read
        self._name = name
        self._seen = self._signature()
        self.value = read(path)

    def refresh(self) -> bool:
        """Read the file again if it changed; tell whether `value` is a new one."""
        signature = self._signature()
        if signature == self._seen:
            return False
        self._seen = signature
        try:
            self.value = self._read(self._path)
        except ConfigError as error:
            hint = "the last good ones still hold"
            _log.error(f"{self._name}.unusable", error=str(error), hint=hint)
            return False
        _log.info(f"{self._name}.read", file=str(self._path))
        return True

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def replace_file(path: Path, text: str) -> None:
    """Replace a file in one step and for good, readable by its owner alone; raises OSError.

    A file of somebody else's stays theirs: what root changed the dispatcher could not read.
    """
    fresh = path.with_name(f"{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if os.geteuid() == 0 and path.exists():
            owner = path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    keep_names(path.parent)
