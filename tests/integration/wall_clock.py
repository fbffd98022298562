"""A wall clock that a test can set while a program runs.

Run as a script, `wall_clock.py FILE MODULE [WORD...]` is `python -m MODULE [WORD...]` with a wall
clock that is off by as many seconds as FILE says at the moment. What cannot be set on any machine,
the counter since its boot, stays as it is; and TLS asks the system, not us.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

_NUMBER = struct.Struct("<q")


class WallClock:
    """Of a program that is started with `program`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._file.write_bytes(_NUMBER.pack(0))

    @property
    def program(self) -> list[str]:
        """What to say in place of `python -m`."""
        return [sys.executable, __file__, str(self._file)]

    def set(self, off_s: int) -> None:
        """Let it be off by so many seconds from now on."""
        with self._file.open("r+b") as file:
            file.write(_NUMBER.pack(off_s))


def _run(file: Path, module: str, *words: str) -> None:
    with file.open("r+b") as opened:
        shown = mmap.mmap(opened.fileno(), _NUMBER.size, access=mmap.ACCESS_READ)
    real_ns = time.time_ns

    def time_ns() -> int:
        return real_ns() + _NUMBER.unpack(shown)[0] * 1_000_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    sys.path[0] = str(Path.cwd())
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(Path(sys.argv[1]), *sys.argv[2:])
