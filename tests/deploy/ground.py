"""Whether boards can start on this machine: `python -m tests.deploy.ground` says why not.

Root is not enough: a container may have it and still not be allowed to make networks, to lay file
systems over each other or to bound processes. So each of these is tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.deploy.control_groups import ControlGroup

_PROGRAMS: Final = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "mosquitto": "mosquitto",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
"""Each with its Debian package."""


def obstacle() -> str | None:
    """Return what keeps boards from starting here, for people; None where nothing does."""
    if os.geteuid() != 0:
        return "a test board needs root"
    missing = [package for name, package in _PROGRAMS.items() if not _is_there(name)]
    if missing:
        return f"not installed: {' '.join(missing)}"
    return _network_obstacle() or _overlay_obstacle() or _group_obstacle()


def _is_there(name: str) -> bool:
    # Debian keeps servers where only root looks.
    return shutil.which(name) is not None or Path("/usr/sbin", name).exists()


def _network_obstacle() -> str | None:
    name = f"ef{os.getpid()}-try"
    pair = f"link add eth0 netns {name} type veth peer name eth1 netns {name}"
    try:
        refusal = _refusal("ip", "netns", "add", name) or _refusal("ip", *pair.split())
    finally:
        _refusal("ip", "netns", "del", name)
    return refusal and f"no network of its own may be made: {refusal}"


def _overlay_obstacle() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        lower, upper, work, root = (Path(folder) / part for part in ("low", "up", "work", "root"))
        for part in (lower, upper, work, root):
            part.mkdir()
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        refusal = _refusal("mount", "-t", "overlay", "try", "-o", layers, str(root))
        if refusal is None:
            _refusal("umount", str(root))
    return refusal and f"no file system may be laid over another: {refusal}"


def _group_obstacle() -> str | None:
    try:
        group = ControlGroup(f"ef{os.getpid()}-try")
        group.make()
        group.kill()
    except (AssertionError, KeyError, OSError) as error:
        return f"no control group may be made: {error}"
    return None


def _refusal(*words: str) -> str | None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"{words[0]} failed" if done.returncode else None


if __name__ == "__main__":
    if why := obstacle():
        print(why)  # noqa: T201 - the script that asks shows it
        sys.exit(1)
