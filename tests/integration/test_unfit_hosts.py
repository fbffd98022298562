"""A worker whose disk is full or read-only gives its place to others, and comes back by itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import require
from tests.integration.fleet import Device, Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

DISK_MB, LOW_MB = 64, 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The data folder of w1, on a small disk of its own."""
    require(os.geteuid() == 0, "a disk of its own needs root, which")
    folder = tmp_path / "w1"
    folder.mkdir()
    with ExitStack() as stack:
        _mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "edgefleet-test", str(folder))
        stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
        yield folder


def test_jobs_go_to_other_boards_while_the_disk_is_full_or_read_only(
    tmp_path: Path, disk: Path
) -> None:
    with Fleet(tmp_path) as running:
        device = running.device()
        running.start_dispatcher()
        running.start_worker("w1", engine="echo", DISK_LOW_MB=str(LOW_MB))
        running.start_worker("w2", engine="echo")
        running.online(device, "w1", "w2")

        filler = disk / "filler"
        filler.write_bytes(bytes((DISK_MB - LOW_MB // 2) * 1_048_576))
        wait_until_drained(device, "disk_low")
        assert answered_by(device, "full") == {"w2"}
        filler.unlink()
        running.online(device, "w1")
        assert "w1" in answered_by(device, "free")

        _mount("--bind", str(disk), str(disk))
        _mount("-o", "remount,bind,ro", str(disk))
        wait_until_drained(device, "disk_read_only")
        assert answered_by(device, "locked") == {"w2"}
        subprocess.run(["umount", "-l", str(disk)], check=True)
        running.online(device, "w1")


def wait_until_drained(device: Device, reason: str) -> None:
    def is_drained() -> bool:
        said = json.loads(device.heard["workers/w1/presence"][-1])
        return (said["status"], said.get("reason")) == ("draining", reason)

    device.wait(is_drained, f"w1 to say {reason}", 60)


def answered_by(device: Device, name: str) -> set[str]:
    """Ask twenty questions and return who answered."""
    jobs = [f"{name}-{number}" for number in range(20)]
    for job in jobs:
        device.submit(job, prompt=f"echo {job}", max_tokens=8, cache="off", deadline_ms=60_000)
    results = [device.result(job, 60) for job in jobs]
    assert {result["status"] for result in results} == {"ok"}
    return {result["worker"] for result in results}


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"a mount of its own ({done.stderr.strip()})")
