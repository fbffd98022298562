"""What a board says of itself: read from /proc, /sys, the worker's settings, and one connection."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.manifest import MANIFEST_NAME

WORKER_CONFIG: Final = Path("/etc/edgefleet/worker.toml")
_SECTOR_BYTES: Final = 512
_SECTORS_WRITTEN: Final = 6
"""Which number of /sys/block/*/stat (Documentation/block/stat.rst)."""
_CONNECT_S: Final = 5.0
_TIME_ERROR: Final = 5
"""What adjtimex(2) returns while nobody keeps the clock right."""
_DISKS: Final = re.compile(r"(mmcblk\d+|sd[a-z]|nvme\d+n\d+|vd[a-z])")


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A disk.

    Attributes:
        kind: `SD` or `MMC` (an eMMC); empty: another one.
        life_time: What an eMMC has used of its life, in tenths, of its two kinds of memory.
        pre_eol: Its reserve: 1 normal, 2 most of it is used, 3 nearly all is.
        written_bytes: Since the system started.
    """

    name: str
    kind: str = ""
    life_time: tuple[int, ...] = ()
    pre_eol: int | None = None
    written_bytes: int = 0


class LinkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The way to the broker.

    Attributes:
        addresses: What its name stands for; empty: nothing.
        error: Why no connection was made; empty: one was.
    """

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    error: str = ""


class Validity(msgspec.Struct, frozen=True):
    """From when to when a certificate holds, UTC epoch milliseconds."""

    begin_ms: int
    end_ms: int


class BoardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the checks of a board look at. None and empty: it cannot be known here.

    Attributes:
        machine: As `uname -m` says it.
        features: Of the processor, in the words of Linux.
        onnxruntime: Its version.
        engine: `onnx` or `echo`, as the worker's settings say.
        model_mb: What the model takes, by its manifest.
        limit_mb: `MemoryMax=` of the worker's unit.
        throttled: The Raspberry Pi's word: bits 0-3 now, 16-19 since it was switched on.
        controllers: Of control groups.
        data: Folder of what must survive.
        is_read_only: Its file system is mounted so.
        broker: None: the settings name none, or a connection was not wanted.
    """

    worker: str
    engine: str = "onnx"
    machine: str = ""
    board: str = ""
    features: frozenset[str] = frozenset()
    onnxruntime: str | None = None
    memory_mb: int = 0
    available_mb: int = 0
    model_mb: int | None = None
    limit_mb: int | None = None
    throttled: int | None = None
    temp_c: float | None = None
    disks: tuple[DiskFacts, ...] = ()
    uptime_s: float = 0.0
    is_clock_synced: bool | None = None
    controllers: frozenset[str] = frozenset()
    data: str = ""
    data_free_mb: int | None = None
    is_read_only: bool = False
    certificate: Validity | None = None
    certificate_error: str = ""
    broker: LinkFacts | None = None
    now_ms: int = 0


def read_board(config: Path = WORKER_CONFIG, *, root: Path = Path("/")) -> BoardFacts:
    """Read everything; the broker is asked for a connection and nothing else.

    Args:
        config: The worker's settings.
        root: Where /proc, /sys and /etc are; tests give a folder of their own.

    Raises:
        ConfigError: The settings cannot be read.
    """
    settings = _settings(config)
    cpu = _fields(_text(root / "proc/cpuinfo"))
    memory = _fields(_text(root / "proc/meminfo"))
    data = Path(settings.get("data", "/var/lib/edgefleet/worker"))
    validity, error = _certificate(settings)
    return BoardFacts(
        worker=str(settings.get("id", socket.gethostname())),
        engine=str(settings.get("engine", "onnx")),
        machine=platform.machine(),
        board=_text(root / "proc/device-tree/model").strip("\x00\n "),
        features=frozenset((cpu.get("flags") or cpu.get("features") or "").split()),
        onnxruntime=_version("onnxruntime"),
        memory_mb=_kib(memory, "memtotal"),
        available_mb=_kib(memory, "memavailable"),
        model_mb=_model_mb(settings),
        limit_mb=_limit_mb(root),
        throttled=_throttled(root),
        temp_c=_temp_c(root),
        disks=tuple(
            _disk(path) for path in sorted((root / "sys/block").glob("*")) if _is_disk(path)
        ),
        uptime_s=float((_text(root / "proc/uptime").split() or ["0"])[0]),
        is_clock_synced=is_clock_synced(),
        controllers=_controllers(root),
        data=str(data),
        data_free_mb=shutil.disk_usage(data).free // 1_000_000 if data.exists() else None,
        is_read_only=data.exists() and bool(os.statvfs(data).f_flag & os.ST_RDONLY),
        certificate=validity,
        certificate_error=error,
        broker=_broker(settings),
        now_ms=time.time_ns() // 1_000_000,
    )


def _settings(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the worker's settings cannot be read: {cause_of(error)}",
            hint=f"run it as root, or name another file than {config}: --worker FILE",
        ) from error


def _certificate(settings: dict[str, Any]) -> tuple[Validity | None, str]:
    path = settings.get("broker", {}).get("tls", {}).get("cert_file")
    return (None, "") if path is None else validity_of(Path(path))


def validity_of(path: Path) -> tuple[Validity | None, str]:
    """Return how long a certificate holds, or why nobody knows."""
    try:
        from fleet_pki.certificates import read_certificate  # noqa: PLC0415 - only where it is used
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed"
    try:
        one = read_certificate(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what was found
        return None, str(error)
    begin, end = one.not_valid_before_utc, one.not_valid_after_utc
    return Validity(int(begin.timestamp() * 1_000), int(end.timestamp() * 1_000)), ""


def _broker(settings: dict[str, Any]) -> LinkFacts | None:
    url = urlsplit(str(settings.get("broker", {}).get("url", "")))
    if not url.hostname:
        return None
    return reach(url.hostname, url.port or (8_883 if url.scheme == "mqtts" else 1_883))


def reach(host: str, port: int) -> LinkFacts:
    """Look a name up and connect to it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return LinkFacts(host=host, port=port, error=str(error))
    addresses = tuple(dict.fromkeys(str(one[4][0]) for one in found))
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return LinkFacts(host=host, port=port, addresses=addresses, error=str(error))
    return LinkFacts(host=host, port=port, addresses=addresses)


def _model_mb(settings: dict[str, Any]) -> int | None:
    try:
        raw = (Path(str(settings.get("model", ""))) / MANIFEST_NAME).read_bytes()
        needs = msgspec.json.decode(raw)["memory_mb"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return None
    return int(needs)


def _limit_mb(root: Path) -> int | None:
    unit = _text(root / "etc/systemd/system/edgefleet-worker.service")
    found = re.search(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    return int(found[1]) if found else None


def _throttled(root: Path) -> int | None:
    word = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled").strip()
    if not word and root == Path("/"):
        word = _said_by("vcgencmd", "get_throttled").partition("=")[2].strip()
    try:
        return int(word, 16)
    except ValueError:
        return None


def _temp_c(root: Path) -> float | None:
    texts = [_text(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    temps = [int(text) / 1_000 for text in texts if text.strip().lstrip("-").isdigit()]
    return max((temp for temp in temps if -40 < temp < 150), default=None)


def _is_disk(path: Path) -> bool:
    return _DISKS.fullmatch(path.name) is not None


def _disk(path: Path) -> DiskFacts:
    life = _text(path / "device/life_time").split()
    reserve = _text(path / "device/pre_eol_info").strip()
    stat = _text(path / "stat").split()
    return DiskFacts(
        name=path.name,
        kind=_text(path / "device/type").strip() if path.name.startswith("mmcblk") else "",
        life_time=tuple(int(word, 16) for word in life),
        pre_eol=int(reserve, 16) if reserve else None,
        written_bytes=int(stat[_SECTORS_WRITTEN]) * _SECTOR_BYTES if len(stat) > 6 else 0,
    )


def is_clock_synced() -> bool | None:
    """Ask the kernel whether anybody keeps its clock right, be it chrony, timesyncd or ntpd."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # Larger than any `struct timex`; zeros ask and change nothing.
        state = int(libc.adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _controllers(root: Path) -> frozenset[str]:
    unified = _text(root / "sys/fs/cgroup/cgroup.controllers").split()
    if unified:
        return frozenset(unified)
    rows = [line.split() for line in _text(root / "proc/cgroups").splitlines()[1:]]
    return frozenset(row[0] for row in rows if len(row) == 4 and row[3] == "1")


def _fields(text: str) -> dict[str, str]:
    """Return the first value of each `name: value`, names in lower case."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _kib(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0 kB").split()[0]) * 1_024 // 1_000_000


def _version(package: str) -> str | None:
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _said_by(*words: str) -> str:
    program = shutil.which(words[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command of the system with fixed arguments
            [program, *words[1:]], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
