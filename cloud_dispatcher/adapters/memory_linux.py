"""How full the memory is: the machine's, or that of the control group that the dispatcher is in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MACHINE: Final = Path("proc/meminfo")
_OWN_GROUP: Final = Path("proc/self/cgroup")
_GROUPS: Final = Path("sys/fs/cgroup")


class LinuxMemory:
    """Reads what Linux says; elsewhere it knows nothing.

    Args:
        root: Where `/proc` and `/sys` are; tests give a folder of their own.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def used_pct(self) -> float | None:
        """Return the fuller of both, 0..100; None where nobody can tell.

        What the kernel can take back at once (file pages) counts as free.
        """
        shares = [share for share in (self._of_machine(), self._of_group()) if share is not None]
        return round(100 * max(shares), 1) if shares else None

    def _of_machine(self) -> float | None:
        fields = _fields(self._text(_MACHINE))
        total, available = fields.get("MemTotal:"), fields.get("MemAvailable:")
        return None if not total or available is None else 1 - available / total

    def _of_group(self) -> float | None:
        """Return the share of a limit of version 2; without one there is none to be near to."""
        name = self._text(_OWN_GROUP).partition("0::/")[2].strip()
        group = _GROUPS / name
        try:
            limit = int(self._text(group / "memory.max"))
            used = int(self._text(group / "memory.current"))
        except ValueError:
            return None
        files = _fields(self._text(group / "memory.stat")).get("inactive_file", 0)
        return min(max(used - files, 0) / limit, 1.0) if limit > 0 else None

    def _text(self, path: Path) -> str:
        try:
            return (self._root / path).read_text("ascii", errors="replace")
        except OSError:
            return ""


def _fields(text: str) -> dict[str, int]:
    """Read lines of a name, a number and perhaps a unit."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
