"""Control groups of test boards and labs, below the group that the tests themselves run in."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_WANTED: Final = ("name=systemd", "memory", "cpu", "pids", "freezer")
_PATIENCE_S: Final = 60.0


class ControlGroup:
    """A group, with its own below it: in version 2 or in each hierarchy of version 1."""

    def __init__(self, *names: str) -> None:
        self._folders = {kind: path.joinpath(*names) for kind, path in _own_groups().items()}

    def make(self) -> list[Path]:
        """Make it; return the files to which a process writes its number to join."""
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        return [folder / "cgroup.procs" for folder in self._folders.values()]

    def kill(self) -> None:
        """End all that runs in it at once, as a power cut does, and take it away.

        Linux 6.15 and newer may kill whatever is started by clone3() below a group that was killed
        once, so nobody starts anything in it again.
        """
        if "freezer" in self._folders:
            # What is frozen there does not die.
            for state in self._folders["freezer"].rglob("freezer.state"):
                state.write_text("THAWED")
        if self._folders[""].exists():
            (self._folders[""] / "cgroup.kill").write_text("1")
            deadline_s = time.monotonic() + _PATIENCE_S
            while "populated 1" in (self._folders[""] / "cgroup.events").read_text():
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
        self._remove()

    def freeze(self, *, frozen: bool) -> None:
        """Let all that runs in it stand still, or go on."""
        if "freezer" in self._folders:
            state = "FROZEN" if frozen else "THAWED"
            (self._folders["freezer"] / "freezer.state").write_text(state)
        else:
            (self._folders[""] / "cgroup.freeze").write_text("1" if frozen else "0")

    def folders(self) -> list[Path]:
        """Return those that there are."""
        return [folder for folder in self._folders.values() if folder.exists()]

    def _remove(self) -> None:
        """Take away the groups, with those that a board's systemd made in them."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while folders := self.folders():
            for folder in folders:
                below = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
                for path in (*below, folder):
                    with contextlib.suppress(OSError):
                        path.rmdir()
            # Those that died leave a group of version 1 a moment later.
            assert time.monotonic() < deadline_s, folders
            time.sleep(0.02)


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
