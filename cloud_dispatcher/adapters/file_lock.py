"""One program at a time on a file: a lock that the kernel lets go of however its holder ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from cloud_dispatcher.ports import StoreUnavailableError


class FileLock:
    """A lock beside `path`, in a file of its own: SQLite's own locks must not be touched."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}.lock")
        self._guarded = path
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Hold it from now on.

        Raises:
            StoreUnavailableError: `store_in_use`: another process holds it.
            OSError: The lock's file cannot be made.
        """
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StoreUnavailableError(
                f"another dispatcher (process {holder}) works on {self._guarded}",
                code="store_in_use",
                hint="stop that one, or give this one a folder of its own with --data",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def let_go(self) -> None:
        """Hold it no longer; nothing happens where it was not held."""
        if self._file is not None:
            self._file.close()
            self._file = None
