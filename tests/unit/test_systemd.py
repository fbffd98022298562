"""What systemd is told: on a real socket, as it would hear it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_dispatcher.insistence import Insistence
from cloud_dispatcher.ports import StoreUnavailableError
from cloud_dispatcher.publisher import Publisher
from fleet_protocol.bus import Session
from fleet_protocol.memory import MemoryBroker, MemoryBus
from fleet_protocol.systemd import ServiceNotifier
from fleet_protocol.topics import Topics


class Listener:
    """systemd's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(0)

    @property
    def heard(self) -> list[str]:
        """Whatever came since the last look."""
        words: list[str] = []
        while True:
            try:
                words.append(self._socket.recv(4_096).decode())
            except BlockingIOError:
                return words

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    path = str(tmp_path / "notify")
    one = Listener(path if request.param == "path" else f"@{path}")
    yield one
    one.close()


class Seconds:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_turn_says_ready_and_later_ones_that_it_lives(listener: Listener) -> None:
    seconds = Seconds()
    notifier = ServiceNotifier(listener.address, watchdog_s=40, now_s=seconds)
    notifier.doing("connecting")
    notifier.alive()
    assert listener.heard == ["STATUS=connecting", "READY=1\nSTATUS=serving"]
    notifier.alive()
    seconds.now_s += 9.9
    notifier.alive()
    assert listener.heard == []
    seconds.now_s += 0.1
    notifier.alive()
    notifier.alive()
    assert listener.heard == ["WATCHDOG=1"]
    notifier.stopping()
    assert listener.heard == ["STOPPING=1\nSTATUS=finishing what it has"]


def test_who_is_not_watched_sends_no_sign_of_life(listener: Listener) -> None:
    seconds = Seconds()
    notifier = ServiceNotifier(listener.address, now_s=seconds)
    notifier.alive()
    seconds.now_s += 1e6
    notifier.alive()
    assert listener.heard == ["READY=1\nSTATUS=serving"]


@pytest.mark.parametrize(
    ("environ", "beat_s"),
    [
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "60000000"}, 15.0),
        # A child inherits the variables of who is watched.
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 3_600.0),
        ({"WATCHDOG_USEC": "soon"}, 3_600.0),
        ({}, 3_600.0),
    ],
)
def test_the_environment_says_who_is_watched(environ: dict[str, str], beat_s: float) -> None:
    assert ServiceNotifier.of(environ).beat_s == beat_s


def test_nobody_listening_is_no_reason_to_end(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "gone"), "@gone"):
        notifier = ServiceNotifier(address)
        notifier.alive()
        notifier.stopping()


async def test_whoever_waits_for_its_disk_is_not_hung() -> None:
    signs: list[str] = []
    async with MemoryBus(MemoryBroker(seed=1), Session(client_id="d")) as bus:
        insistence = Insistence(
            Publisher(bus, Topics()),
            clock=lambda: 0,
            stopping=asyncio.Event(),
            alive=lambda: signs.append("alive"),
        )
        tries = iter([StoreUnavailableError("full"), None])

        async def write() -> str:
            if (error := next(tries)) is not None:
                raise error
            return "written"

        assert await insistence.on(write) == "written"
    assert signs == ["alive"]
