"""The machine a worker runs on, through psutil and what Linux says of single boards.

Works wherever psutil does; what a system cannot say is None or empty, never a guess.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

import psutil

from edge_worker.ports import HostFacts, HostReading

_FIRMWARE: Final = Path("sys/devices/platform/soc/soc:firmware/get_throttled")
_BOARD: Final = Path("proc/device-tree/model")
_CPU: Final = Path("proc/cpuinfo")
_ZONES: Final = Path("sys/class/thermal")
_THROTTLED_NOW: Final = 0b1111
"""Bits 0-3 of the Raspberry Pi's word: under-voltage, frequency capped, throttled, soft limit;
the same bits 16 higher say "since boot"."""
_MIB: Final = 1_048_576
_SENSIBLE_C: Final = (-40.0, 150.0)
_NOT_THE_PROCESSOR: Final = ("PMIC", "iwlwifi", "ath", "nvme", "BAT", "INT340")
"""Beginnings of zone types that say nothing of it; a Jetson's PMIC-Die reads 50 or 100 for ever."""
_CLOCK_HELD_DOWN: Final = ("cpufreq", "processor")
"""In the types of cooling devices that cool by lowering the processor's clock."""
_ARM_CORES: Final = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd42": "Cortex-A78AE",
}
_ARM_SYSCTLS: Final = {
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


class LinuxHost:
    """A `Host`.

    Args:
        root: Where `/sys` and `/proc` are; tests give a folder of their own.
        data: Folder whose disk matters; None: nobody asks.
        vcgencmd: The Raspberry Pi's firmware command; None: look on PATH.
    """

    def __init__(
        self, *, root: Path = Path("/"), data: Path | None = None, vcgencmd: str | None = None
    ) -> None:
        self._root = root
        self._data = data
        self._vcgencmd = vcgencmd or shutil.which("vcgencmd")
        psutil.cpu_percent()  # The first reading is the base of the second and says nothing.

    def facts(self) -> HostFacts:
        """Return what does not change."""
        cpu = self._cpuinfo()
        board = self._text(_BOARD).strip("\x00\n ") or f"{platform.system()} {platform.machine()}"
        return HostFacts(
            board=board[:128],
            cpu=(_cpu_name(cpu) or platform.processor() or platform.machine())[:128],
            cores=psutil.cpu_count() or 1,
            memory_mb=psutil.virtual_memory().total // _MIB,
            cpu_features=self.cpu_features(),
        )

    def cpu_features(self) -> tuple[str, ...]:
        """Return what the processor can do, in the words of Linux."""
        cpu = self._cpuinfo()
        words = (cpu.get("flags") or cpu.get("features") or "").split()
        if not words and platform.system() == "Darwin":
            words = _darwin_features()
        return tuple(sorted(words))

    def read(self) -> HostReading:
        """Return what changes."""
        return HostReading(
            cpu_pct=psutil.cpu_percent(),
            mem_pct=psutil.virtual_memory().percent,
            temp_c=self._temp_c(),
            throttled=self._throttled(),
            disk_free_mb=self._disk_free_mb(),
            disk_read_only=self._disk_is_read_only(),
        )

    def _temp_c(self) -> float | None:
        """Return the hottest thermal zone: on a board the one that will throttle first."""
        zones = (self._root / _ZONES).glob("thermal_zone*")
        temps = [
            _number(_read(zone / "temp"))
            for zone in zones
            if not _read(zone / "type").startswith(_NOT_THE_PROCESSOR)
        ]
        least, most = _SENSIBLE_C
        sane = [temp / 1_000 for temp in temps if temp is not None and least < temp / 1_000 < most]
        return max(sane, default=None)

    def _throttled(self) -> bool | None:
        word = self._text(_FIRMWARE).strip()
        if not word and self._vcgencmd:
            word = _run(self._vcgencmd, "get_throttled").partition("=")[2].strip()
        try:
            return bool(int(word, 16) & _THROTTLED_NOW)
        except ValueError:
            return self._is_held_down()

    def _is_held_down(self) -> bool | None:
        """Tell whether the kernel lowers the clock against the heat; None: it has no such means."""
        states = [
            _number(_read(device / "cur_state"))
            for device in (self._root / _ZONES).glob("cooling_device*")
            if any(word in _read(device / "type").lower() for word in _CLOCK_HELD_DOWN)
        ]
        known = [state for state in states if state is not None]
        return any(state > 0 for state in known) if known else None

    def _disk_free_mb(self) -> int | None:
        if self._data is None:
            return None
        try:
            return shutil.disk_usage(self._data).free // _MIB
        except OSError:  # It is not there, or its disk does not answer: who writes will say so.
            return None

    def _disk_is_read_only(self) -> bool:
        """Tell whether the kernel lets nobody write there, as after errors of a worn card."""
        if self._data is None or not hasattr(os, "statvfs"):
            return False
        try:
            return bool(os.statvfs(self._data).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def _cpuinfo(self) -> dict[str, str]:
        """Return the first value of each field, names in lower case."""
        fields: dict[str, str] = {}
        for line in self._text(_CPU).splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip().lower(), value.strip())
        return fields

    def _text(self, path: Path) -> str:
        return _read(self._root / path)


def _cpu_name(cpu: dict[str, str]) -> str:
    """Return the model's name; ARM kernels give a number of the core's design instead."""
    part = cpu.get("cpu part", "")
    return cpu.get("model name") or _ARM_CORES.get(part.lower()) or (part and f"ARM {part}")


def _darwin_features() -> list[str]:
    """Return what sysctl says, in the words of Linux: `asimddp`, `i8mm`, `avx2` and the like."""
    found = [name for key, name in _ARM_SYSCTLS.items() if _run("sysctl", "-n", key).strip() == "1"]
    return found + _run("sysctl", "-n", "machdep.cpu.leaf7_features").lower().split()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _run(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command of the system with fixed arguments
            command, capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
