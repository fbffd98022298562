"""Starts and ends the processes of a benchmark, and reads what they cost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Return a TCP port that was free on loopback a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def process(
    command: Sequence[str | Path], *, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run a command until the block ends; its output goes to `log`."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def module(name: str, *words: str | Path) -> list[str | Path]:
    """Return the command that runs a module of the project with this interpreter."""
    return [sys.executable, "-m", name, *words]


def cpu_s(root: psutil.Process) -> float:
    """Return user and system seconds a process and its living children have used."""
    total = 0.0
    for one in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def peak_mb(one: psutil.Process) -> float:
    """Return the most memory a living process ever had resident, in 10^6 bytes.

    Its own `ru_maxrss` would not do: on Linux it begins with what its parent held at the start.
    """
    status = Path(f"/proc/{one.pid}/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        peaks = [line.split() for line in lines if line.startswith("VmHWM:")]
        return float(peaks[0][1]) * 1_024 / 1e6
    # No system but Linux tells the peak of another process: what it holds now is less than that.
    return float(one.memory_info().rss) / 1e6
