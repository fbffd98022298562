"""Control groups of test boards, below the group that the tests themselves run in."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_WANTED: Final = ("name=systemd", "memory", "cpu", "pids", "freezer")
_PATIENCE_S: Final = 10.0


class ControlGroup:
    """A board's group, in version 2 or in each hierarchy of version 1."""

    def __init__(self, name: str) -> None:
        self._folders = {kind: path / name for kind, path in _own_groups().items()}

    def make(self) -> list[Path]:
        """Make it; return the files to which a process writes its number to join."""
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        return [folder / "cgroup.procs" for folder in self._folders.values()]

    def kill(self) -> None:
        """End all that runs in it at once, as a power cut does."""
        (self._folders[""] / "cgroup.kill").write_text("1")
        deadline_s = time.monotonic() + _PATIENCE_S
        while "populated 1" in (self._folders[""] / "cgroup.events").read_text():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    def freeze(self, *, frozen: bool) -> None:
        """Let all that runs in it stand still, or go on."""
        if "freezer" in self._folders:
            state = "FROZEN" if frozen else "THAWED"
            (self._folders["freezer"] / "freezer.state").write_text(state)
        else:
            (self._folders[""] / "cgroup.freeze").write_text("1" if frozen else "0")

    def remove(self) -> None:
        """Take it away, with the groups that a board's systemd made in it."""
        for folder in self._folders.values():
            below = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
            for path in (*below, folder):
                with contextlib.suppress(OSError):
                    path.rmdir()


def _own_groups() -> dict[str, Path]:
    """Return our own groups by controller; "" is version 2."""
    groups: dict[str, Path] = {}
    is_mixed = not (_ROOT / "cgroup.controllers").exists()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        name = next((c for c in controllers.split(",") if c in _WANTED), None)
        if not controllers:
            groups[""] = (_ROOT / "unified" if is_mixed else _ROOT) / path.lstrip("/")
        elif is_mixed and name is not None:
            groups[name] = _ROOT / name.removeprefix("name=") / path.lstrip("/")
    return groups
