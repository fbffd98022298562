"""Follows a Mosquitto's log and puts down in an audit log whom it turned away.

The log has a line for every packet, so it is best kept in memory (a tmpfs): what was read and
written down is given back to the file system piece by piece, by punching holes, so that the file
can be followed for years without being moved under the broker's hands.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from fleet_cli.output import say
from fleet_cli.refusals import Client, Refusal, RefusalReader, condense
from fleet_pki.files import write_file
from fleet_protocol.audit_folder import AuditFolder, Noted
from fleet_protocol.errors import ConfigError
from fleet_protocol.systemd import ServiceNotifier

_log = structlog.get_logger(__name__)

LOG_FILE: Final = "log_dest file "
"""How a line of its configuration begins that says where a broker's log is."""
_READ_BYTES: Final = 4_194_304
_LINE_MOST_BYTES: Final = 65_536
_FREE_BYTES: Final = 1_048_576
_BEHIND_MOST_BYTES: Final = 67_108_864
"""So much is kept of what was read and could not be written down."""
_WAITING_MOST: Final = 10_000
_SAVE_EVERY_MS: Final = 30_000
_PAUSE_S: Final = 0.5
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How far a log was read, and who was connected then: what a restart goes on with."""

    file: int = 0
    offset: int = 0
    clients: dict[str, Client] = msgspec.field(default_factory=dict)


class LogFile:
    """A file that another program appends to, read from a place on. It may be replaced."""

    def __init__(self, path: Path, place: Place) -> None:
        self._path = path
        self._file, self._offset = place.file, place.offset
        self._descriptor = -1
        self._freed = 0
        self._can_free = True

    @property
    def place(self) -> tuple[int, int]:
        """Which file it is (its inode), and how far it was read."""
        return self._file, self._offset

    def read(self) -> bytes:
        """Return the next whole lines, or nothing; raises OSError."""
        if not self._is_open():
            return b""
        data = os.pread(self._descriptor, _READ_BYTES, self._offset)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) > _LINE_MOST_BYTES:
            end = len(data)  # no line of Mosquitto's: it ends them at 1,000 characters
        self._offset += end
        return data[:end]

    def free(self, *, least_bytes: int) -> None:
        """Give back what was read, if it is so much."""
        if not self._can_free or self._offset - self._freed < least_bytes:
            return
        if _LIBC.fallocate(self._descriptor, _KEEP_SIZE | _PUNCH_HOLE, 0, self._offset) == 0:
            self._freed = self._offset
            return
        self._can_free = False
        _log.warning(
            "broker_log.grows", file=str(self._path), error=os.strerror(ctypes.get_errno())
        )

    def close(self) -> None:
        """Close the file; a second time changes nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_open(self) -> bool:
        """Open the file, also one that took its place once the old one is read to its end."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return self._descriptor >= 0
        if self._descriptor >= 0:
            size = os.fstat(self._descriptor).st_size
            if found.st_ino == self._file and found.st_size >= self._offset:
                return True
            if found.st_ino != self._file and size > self._offset:
                return True
            self.close()
        self._descriptor = _open(self._path)
        is_same = found.st_ino == self._file and found.st_size >= self._offset
        self._file, self._freed = found.st_ino, 0
        self._offset = max(self._offset if is_same else 0, _begin(self._descriptor))
        return True


class BrokerWatch:
    """Turns a broker's log into lines of an audit log.

    Args:
        path: The log.
        acl: The broker's access list: who may listen to what. None: listening is not looked at.
        audit: Open.
        wall_ms: UTC epoch milliseconds.
    """

    def __init__(
        self, path: Path, *, acl: Path | None, audit: AuditFolder, wall_ms: Callable[[], int]
    ) -> None:
        self._audit = audit
        self._wall_ms = wall_ms
        self._acl = acl
        self._acl_seen: tuple[int, int] | None = None
        self._memory = audit.folder / "broker-log.json"
        place = _read_place(self._memory)
        self._reader = RefusalReader(None, place.clients)
        self._file = LogFile(path, place)
        self._saved_at_ms = 0
        self._noted: list[Noted] = []
        self._lost = 0

    @property
    def waiting(self) -> int:
        """How many entries the disk did not take yet."""
        return len(self._noted)

    def step(self) -> tuple[bool, list[str]]:
        """Read on; return whether there was anything, and the lines that people may want.

        Raises:
            OSError: The log or the access list cannot be read.
        """
        self._refresh_list()
        data = self._file.read()
        said = list(self._reader.read(data))
        for refusal in condense(one for one in said if isinstance(one, Refusal)):
            self._note("broker.refused", refusal.about)
        if self._noted:
            self._write_down()
        elif data and self._wall_ms() - self._saved_at_ms >= _SAVE_EVERY_MS:
            self._save()
        return bool(data), [one for one in said if isinstance(one, str)]

    def close(self) -> None:
        """Write down what waits, and remember the place."""
        if self._noted:
            self._write_down()
        self._save()
        self._file.close()

    def _note(self, what: str, about: dict[str, Any]) -> None:
        if len(self._noted) >= _WAITING_MOST:
            self._lost += 1
            return
        # By our own clock, in whose order the audit log's files are.
        self._noted.append((self._wall_ms(), what, about))

    def _write_down(self) -> None:
        """Write what waits; where the disk takes nothing it waits on, in bounded memory."""
        lost = [(self._wall_ms(), "lost", {"entries": self._lost})] if self._lost else []
        try:
            self._audit.append([*self._noted, *lost])
        except OSError as error:
            _log.error("audit.not_written", entries=len(self._noted), error=str(error))
            self._file.free(least_bytes=_BEHIND_MOST_BYTES)
            return
        self._noted, self._lost = [], 0
        self._save()

    def _save(self) -> None:
        """Remember how far all is written down; what is before that is not needed any more."""
        file, offset = self._file.place
        place = Place(file=file, offset=offset, clients=self._reader.clients)
        self._saved_at_ms = self._wall_ms()
        try:
            write_file(self._memory, msgspec.json.encode(place))
        except ConfigError as error:
            _log.error("broker_log.place_unsaved", error=str(error))
            return
        self._file.free(least_bytes=_FREE_BYTES)

    def _refresh_list(self) -> None:
        if self._acl is None:
            return
        found = self._acl.stat()
        seen = (found.st_mtime_ns, found.st_ino)
        if seen != self._acl_seen:
            self._reader.readable = read_list(self._acl.read_text("utf-8"))
            self._acl_seen = seen


def log_of(folder: Path) -> Path | None:
    """Return where the broker of a folder writes whom it turned away; None: it does not."""
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "mosquitto.conf").read_text("utf-8").splitlines():
            if line.startswith(LOG_FILE):
                return Path(line.removeprefix(LOG_FILE))
    return None


@contextlib.contextmanager
def watching(path: Path, *, acl: Path | None, audit: AuditFolder) -> Iterator[BrokerWatch]:
    """Open an audit log and follow a broker's; raises ConfigError."""
    torn_bytes = audit.open()
    try:
        watch = BrokerWatch(path, acl=acl, audit=audit, wall_ms=_wall_ms)
        audit.append([(_wall_ms(), "started", {"torn_bytes": torn_bytes} if torn_bytes else {})])
        yield watch
        watch.close()
        if watch.waiting:
            raise ConfigError(
                f"{watch.waiting} entries were not written to {audit.folder}",
                code="audit_unwritable",
                hint="make room on its disk; what the broker logs meanwhile is read then",
            )
        audit.append([(_wall_ms(), "stopped", {})])
    finally:
        audit.close()


def follow(watch: BrokerWatch, *, once: bool) -> None:
    """Read until SIGTERM or SIGINT, or once to the end; print what people may want.

    Raises:
        ConfigError: Once, and the log or the access list cannot be read.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    notifier = ServiceNotifier.of(os.environ)
    while not ended.is_set():
        is_more = False
        try:
            is_more, lines = watch.step()
            for line in lines:
                say(line)
        except OSError as error:
            if once:
                raise ConfigError(
                    str(error), hint="check who may read the broker's files"
                ) from error
            _log.error("broker_log.stuck", error=str(error), hint="it is tried again")
        notifier.alive()
        if once and not is_more:
            return
        if not is_more:
            ended.wait(min(_PAUSE_S, notifier.beat_s))
    notifier.stopping()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def read_list(text: str) -> dict[str, list[str]]:
    """Return by user what a Mosquitto's access list lets it listen to."""
    found: dict[str, list[str]] = {}
    for user, filter_ in _reads(text):
        found.setdefault(user, []).append(filter_)
    return found


def _reads(text: str) -> Iterator[tuple[str, str]]:
    user = ""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            user = rest.strip()
        elif word == "topic":
            access, _, name = rest.partition(" ")
            if access in {"read", "readwrite"}:
                yield user, name.strip()


def _read_place(path: Path) -> Place:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Place)
    except FileNotFoundError:
        return Place()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path}: {error}",
            code="audit_damaged",
            hint="take the file away: the broker's log is then read from its beginning",
        ) from error


def _open(path: Path) -> int:
    """Open for reading, and for giving back where we may write."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _begin(descriptor: int) -> int:
    """Return where the first byte is that was not given back."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError:  # there is none yet
        return 0


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    libc.fallocate.restype = ctypes.c_int
    return libc


_LIBC: Final = _libc()
