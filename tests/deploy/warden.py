"""Takes a lab's boards, networks and programs away, whatever became of whoever made it.

A process of its own in a session of its own: it waits for the end of its standard input, which
comes when the lab is left, and as well when the tests are killed. What a warden that was killed
itself has left is taken away by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from tests.deploy.control_groups import ControlGroup

REPOSITORY: Final = Path(__file__).parents[2]
_PROGRAM: Final = "tests.deploy.warden"
_NETWORKS: Final = Path("/run/netns")
_PATIENCE_S: Final = 900.0


class Warden:
    """One that runs. Lifetime is `with`: at its end nothing of the lab is there any more.

    Attributes:
        lab: The lab's name: no other on this machine has it. Networks are called so, or begin with
            it and a dash, as sources of mounts do; control groups are below one of that name.
    """

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout
        self.lab = self._process.stdout.readline().strip()
        assert self.lab
        return self

    def __exit__(self, *exc: object) -> None:
        left, _ = self._process.communicate(timeout=_PATIENCE_S)
        assert self._process.returncode == 0, f"{self.lab} left {left}"


def take_away(lab: str) -> None:
    """End all that runs in a lab's groups and networks, unmount its disks and remove them."""
    group = ControlGroup(lab)
    group.kill()
    for network in _networks(lab):
        for pid in _run("ip", "netns", "pids", network).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    disks = _disks(lab)
    for disk in disks:
        _run("umount", "-l", str(disk))
    for network in _networks(lab):
        _run("ip", "netns", "del", network)
    for disk in disks:
        shutil.rmtree(disk.parent, ignore_errors=True)


def left_of(lab: str) -> list[str]:
    """Return what there is of a lab, for people."""
    groups = [str(folder) for folder in ControlGroup(lab).folders()]
    return [*groups, *(str(disk) for disk in _disks(lab)), *_networks(lab)]


def _networks(lab: str) -> list[str]:
    names = (path.name for path in _NETWORKS.glob(f"{lab}*"))
    return [name for name in names if name == lab or name.startswith(f"{lab}-")]


def _disks(lab: str) -> list[Path]:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(target) for source, target, *_ in mounts if source.startswith(f"{lab}-")]


def _lost() -> Iterator[str]:
    """Return the names of labs whose warden is no more."""
    for path in _NETWORKS.glob("ef*"):
        if found := re.fullmatch(r"ef(\d+)", path.name):
            try:
                words = Path(f"/proc/{found[1]}/cmdline").read_text()
            except OSError:
                words = ""
            if _PROGRAM not in words:
                yield path.name


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def main() -> None:
    """Wait for the end, then take away."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for lab in _lost():
        take_away(lab)
    lab = f"ef{os.getpid()}"
    print(lab, flush=True)  # noqa: T201 - the lab reads it
    sys.stdin.read()
    take_away(lab)
    if left := left_of(lab):
        sys.exit(" ".join(left))


if __name__ == "__main__":
    main()
