"""Run a program that dies with the process that started it, even by kill -9.

`python -m fleet_cli.tether PARENT_PID PROGRAM ARG...` asks the kernel for a SIGKILL at its parent's
death, then becomes the program. Only Linux can do that; elsewhere it just becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tethered(words: list[str]) -> list[str]:
    """Return the command line that runs `words` tethered to this process."""
    return [sys.executable, "-m", "fleet_cli.tether", str(os.getpid()), *words]


def main() -> None:
    """Tie ourselves to the parent and become the program."""
    parent, *words = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit(1)  # it died before we were tied
    os.execvp(words[0], words)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
