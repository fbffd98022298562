"""Where programs of a user keep what must survive: one place for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def user_data_folder(environ: Mapping[str, str]) -> Path:
    """Return `$XDG_DATA_HOME/edgefleet`, by default `~/.local/share/edgefleet`; it need not exist.

    The XDG specification says to ignore a relative path.
    """
    named = environ.get("XDG_DATA_HOME")
    if named and Path(named).is_absolute():
        return Path(named) / "edgefleet"
    return Path(environ.get("HOME") or Path.home()) / ".local" / "share" / "edgefleet"
