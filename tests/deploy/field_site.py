"""A site of test boards as an operator has it: a hub, workers, wheels, a device or two."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any, Final

from fleet_protocol import __version__
from fleet_protocol.manifest import DEFAULT_MODEL
from models.cache import cache_root
from tests.deploy.board_lab import Board, BoardLab
from tests.deploy.playbooks import Operator

PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}
PATIENCE_S: Final = 180.0
HUB_UNITS: Final = ("edgefleet-broker", "edgefleet-authority", "edgefleet-dispatcher")
SPOOL: Final = "var/lib/edgefleet/worker/spool.sqlite"
_PKI: Final = "/var/lib/edgefleet/authority"
_FLEET: Final = "/opt/edgefleet/current/venv/bin/fleet"


class Site:
    """The hub, the boards, and who runs them."""

    def __init__(self, lab: BoardLab, settings: Mapping[str, Any]) -> None:
        self.lab = lab
        self.hub = lab.boards["hub"]
        self.boards = {name: board for name, board in lab.boards.items() if name != "hub"}
        self.operator = Operator(lab, self.hub, settings)

    def units(self) -> Iterator[tuple[Board, str]]:
        """Return all services, each with its board."""
        yield from ((self.hub, unit) for unit in HUB_UNITS)
        yield from ((board, "edgefleet-worker") for board in self.boards.values())

    def enrol(self, role: str, name: str, *options: str) -> Path:
        """Enrol somebody on the hub and carry key and certificate to whoever asks."""
        as_authority = f"sudo runuser -u edgefleet-authority -- {_FLEET}"
        words = " ".join(options)
        self.hub.ssh(f"{as_authority} enroll {role} {name} {words} --out {_PKI}/out --pki {_PKI}")
        self.hub.ssh(
            f"sudo {_FLEET} pki broker /etc/mosquitto/fleet --user mosquitto --pki {_PKI} --reload"
        )
        folder = self.lab.folder / "keys" / name
        folder.mkdir(parents=True)
        for file in ("ca.pem", "key.pem", "cert.pem"):
            text = self.hub.ssh(f"sudo cat {_PKI}/out/{name}/{file}").stdout
            (folder / file).write_text(text)
            (folder / file).chmod(0o600)
        return folder

    def ask(self, identity: Path, question: str, *options: str) -> dict[str, Any]:
        """Ask over mutual TLS, from the boards' network."""
        fleet = [sys.executable, "-m", "fleet_cli", "ask", question, "--json", "--cache", "off"]
        who = ["--broker", f"mqtts://{self.hub.address}:8883", "--identity", str(identity)]
        done = subprocess.run(
            self.lab.on_lan(*fleet, *who, *options), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def settings_for(wheelhouse: Path, *, with_model: bool = True) -> dict[str, Any]:
    """Return an operator's settings: the default model where it was built, else the echo engine."""
    settings: dict[str, Any] = {
        "fleet_version": __version__,
        "fleet_wheelhouse": str(wheelhouse),
        # A container has its host's clock, and systemd-timesyncd knows that.
        "base_timesync": False,
        "verify_patience_s": 120,
    }
    built = sorted((cache_root(os.environ) / "models" / DEFAULT_MODEL).glob("*/manifest.json"))
    if built and with_model:
        return settings | {"fleet_model": str(built[-1].parent)}
    echo = {"worker_engine": "echo", "verify_question": "golden", "verify_expect": "golden"}
    return settings | echo


def version_of(board: Board) -> str:
    """Return the version that it uses from its next start on."""
    return board.ssh("readlink /opt/edgefleet/current").stdout.strip()


def wait_until_active(board: Board, unit: str) -> None:
    """Wait for a service, or show what it says."""
    wait_until(
        lambda: board.ssh("systemctl", "is-active", unit, check=False).stdout.strip() == "active",
        lambda: board.ssh(f"sudo journalctl -n 30 -u {unit}").stdout,
    )


def wait_until(is_so: Callable[[], bool], why: Callable[[], str] = lambda: "") -> None:
    """Wait for something that is looked at from outside."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, why()
        time.sleep(0.2)


def spooled(board: Board) -> list[tuple[bytes, str | None]]:
    """Read a worker's spool from outside, whatever its link: assignments and kinds of outcome."""
    with TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            copy(f"{board.root}/{SPOOL}{suffix}", f"{folder}/spool{suffix}")
        with closing(sqlite3.connect(f"{folder}/spool")) as database:
            return database.execute("SELECT assignment, kind FROM attempts").fetchall()
