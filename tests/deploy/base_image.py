"""Base images of test boards: Debian with systemd, built once and kept outside the checkout."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    *("systemd", "systemd-sysv", "systemd-timesyncd", "dbus", "openssh-server", "sudo"),
    *("python3", "python3-venv", "python3-apt", "ca-certificates", "openssl"),
    *("iproute2", "procps", "mosquitto", "cloud-init"),
    *("prometheus", "prometheus-node-exporter"),
)
"""What Raspberry Pi OS Lite has too, and what the roles install: boards here have no internet."""
SERVICES: Final = ("mosquitto", "prometheus", "prometheus-node-exporter")
"""Distributions start them at once."""
NO_CLOUD_INIT: Final = "etc/cloud/cloud-init.disabled"
"""cloud-init does nothing on a board with this file."""
OPERATOR: Final = "ops"
"""Whom Ansible logs in as; may use sudo without a password, as on a freshly written card."""
_SETUP: Final = (
    f"chroot $1 useradd --create-home --shell /bin/bash {OPERATOR}",
    f"echo '{OPERATOR} ALL=(ALL) NOPASSWD: ALL' > $1/etc/sudoers.d/{OPERATOR}",
    # Every board makes or gets its own.
    "rm -f $1/etc/ssh/ssh_host_* $1/etc/machine-id",
    f"touch $1/{NO_CLOUD_INIT}",
    # Which of them a board starts is its test's to say.
    f"chroot $1 systemctl disable {' '.join(SERVICES)}",
)
NATIVE: Final = "amd64"


def base_images(suites: Iterable[str]) -> None:
    """Build those that there are not yet, side by side."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(base_image, set(suites)))


def base_image(suite: str, architecture: str = NATIVE) -> Path:
    """Return the folder of a base image, built where there is none yet (some three minutes).

    Its name holds a digest of all that it is made of, so a change makes a new one.
    """
    name = suite if architecture == NATIVE else f"{suite}-{architecture}"
    digest = hashlib.sha256("\n".join((name, *PACKAGES, *_SETUP)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgefleet/boards"
    cache.mkdir(parents=True, exist_ok=True)
    image = cache / f"{name}-{digest}"
    with (cache / f"{image.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            _build(suite, architecture, image, lock.fileno())
    return image


def _build(suite: str, architecture: str, image: Path, lock: int) -> None:
    half = image.with_name(f"{image.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    done = subprocess.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            f"--architectures={architecture}",
            *(f"--customize-hook={line}" for line in _SETUP),
            suite,
            str(half),
        ],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        # It goes on when we are killed, and nobody may build the same beside it.
        pass_fds=(lock,),
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    half.rename(image)
