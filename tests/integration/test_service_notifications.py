"""Both programs under a service manager: they say when they serve, live on, and end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerProcess

PATIENCE_S = 60.0


class Supervised:
    """A program, and the socket that systemd would listen at."""

    def __init__(self, folder: Path, *words: str) -> None:
        address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words, "--data", str(folder)],
                env={**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "800000"},
                stdout=log,
                stderr=log,
            )

    def hear(self, words: str, *, within_s: float = PATIENCE_S) -> None:
        """Wait until it says so; TimeoutError: it says nothing at all for so long."""
        self._socket.settimeout(within_s)
        deadline_s = time.monotonic() + PATIENCE_S
        while words not in self._socket.recv(4_096).decode().splitlines():
            assert time.monotonic() < deadline_s

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()


@pytest.fixture(params=["worker", "dispatcher"])
def program(
    request: pytest.FixtureRequest, mosquitto: BrokerProcess, tmp_path: Path
) -> Iterator[Supervised]:
    words = (
        ("edge_worker", "run", "--engine", "echo", "--id", "supervised")
        if request.param == "worker"
        else ("cloud_dispatcher", "run")
    )
    one = Supervised(tmp_path, *words, "--broker", mosquitto.url)
    yield one
    one.end()


@pytest.mark.broker
def test_a_program_says_that_it_serves_lives_and_ends(program: Supervised) -> None:
    program.hear("READY=1")
    program.hear("WATCHDOG=1")
    program.hear("WATCHDOG=1")
    program.process.send_signal(signal.SIGTERM)
    program.hear("STOPPING=1")
    assert program.process.wait(PATIENCE_S) == 0


@pytest.mark.broker
def test_a_program_that_stands_still_gives_no_sign_of_life(program: Supervised) -> None:
    program.hear("WATCHDOG=1")
    program.process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        program.hear("nothing of the kind", within_s=1.6)
