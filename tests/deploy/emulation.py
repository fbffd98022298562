"""Programs of another kind of processor, run by the kernel through QEMU."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ARM64: Final = "arm64"
WORKER_KEY: Final = "/run/emulated-worker.key"
"""Where the worker on an emulated board has its key from."""
_WORKER_KEY: Final = "/etc/edgefleet/identities/worker.key"
_WITHOUT_CREDENTIALS: Final = ("LoadCredential=",)
"""To load one, systemd makes a process with a mount namespace in one system call: QEMU refuses."""
_ADAPTED: Final = {
    "systemd-sysusers": _WITHOUT_CREDENTIALS,
    "systemd-tmpfiles-setup": _WITHOUT_CREDENTIALS,
    "systemd-tmpfiles-setup-dev": _WITHOUT_CREDENTIALS,
    "edgefleet-worker": (
        *_WITHOUT_CREDENTIALS,
        f"ExecStartPre=+/usr/bin/install -o edgefleet-worker -m 0400 {_WORKER_KEY} {WORKER_KEY}",
        # A process of several threads, as QEMU's are, may not enter another user namespace.
        "PrivateUsers=no",
        # What is said of the host's processor here crashes onnxruntime, which takes it for an ARM.
        "TemporaryFileSystem=/sys/devices/system/cpu",
    ),
}
"""Settings of services that an emulated board has and a real one has not."""
_FORMATS: Final = Path("/proc/sys/fs/binfmt_misc")
_RULE: Final = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")


def adapt(root: Path) -> None:
    """Let the services of a board that is switched off do without what QEMU cannot."""
    for unit, lines in _ADAPTED.items():
        folder = root / f"etc/systemd/system/{unit}.service.d"
        folder.mkdir(parents=True)
        (folder / "90-emulated.conf").write_text("\n".join(("[Service]", *lines, "")))


def obstacle() -> str | None:
    """Return what keeps programs for ARM from running here."""
    is_there = _RULE.exists() and shutil.which("arch-test") is not None
    return None if is_there else "not installed: qemu-user-static and arch-test"


@contextlib.contextmanager
def emulated_arm64() -> Iterator[None]:
    """Let the kernel run programs for 64-bit ARM until the block ends, or longer if it did before.

    The kernel opens the interpreter now, so that it is found from within a board, too.
    """
    with contextlib.ExitStack() as stack:
        if not (_FORMATS / "register").exists():
            words = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(_FORMATS)]
            subprocess.run(words, check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(_FORMATS)], check=False)
        rule, _, flags = _RULE.read_text().strip().rpartition(":")
        assert "F" in flags, f"{_RULE}: the interpreter would not be found from within a board"
        # Ours comes before what others registered. C: `sudo` runs with the rights of its owner.
        name = f"edgefleet-{os.getpid()}"
        (_FORMATS / "register").write_text(f"{_renamed(rule, name)}:{flags}C")
        stack.callback((_FORMATS / name).write_text, "-1")
        yield


def _renamed(rule: str, name: str) -> str:
    return ":".join(["", name, *rule.split(":")[2:]])
