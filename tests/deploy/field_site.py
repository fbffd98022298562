"""A site of test boards as an operator has it: a hub, workers, wheels, a device or two."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any, Final

from fleet_protocol import __version__
from fleet_protocol.manifest import DEFAULT_MODEL
from models.cache import cache_root
from tests.deploy.board_lab import Board, BoardLab
from tests.deploy.patience import wait_until
from tests.deploy.playbooks import Operator
from tests.deploy.traffic import ask

PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}
HUB_UNITS: Final = (
    *("edgefleet-broker", "edgefleet-broker-audit"),
    *("edgefleet-authority", "edgefleet-dispatcher"),
)
SPOOL: Final = "var/lib/edgefleet/worker/spool.sqlite"
ANOTHER: Final = "99.0.0"
"""A model's version that nobody released."""
_PKI: Final = "/var/lib/edgefleet/authority"
FLEET: Final = "/opt/edgefleet/current/venv/bin/fleet"


class Site:
    """The hub, the boards, and who runs them.

    Args:
        lab: The boards; the one called `hub` is the cloud host.
        settings: Variables for all hosts.
        own: Further ones, by board.
    """

    def __init__(
        self,
        lab: BoardLab,
        settings: Mapping[str, Any],
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.lab = lab
        self.hub = lab.boards["hub"]
        self.boards = {name: board for name, board in lab.boards.items() if name != "hub"}
        self.operator = Operator(lab, self.hub, settings, own or {})

    def units(self) -> Iterator[tuple[Board, str]]:
        """Return all services, each with its board."""
        yield from ((self.hub, unit) for unit in HUB_UNITS)
        yield from ((board, "edgefleet-worker") for board in self.boards.values())

    def as_authority(self, words: str) -> None:
        """Run `fleet` on the hub as whoever enrols; `{pki}` is its folder."""
        line = f"{words} --pki {{pki}}".format(pki=_PKI)
        self.hub.ssh(f"sudo runuser -u edgefleet-authority -- {FLEET} {line}")

    def enrol(self, role: str, name: str, *options: str) -> Path:
        """Enrol somebody on the hub and carry key and certificate to whoever asks."""
        self.as_authority(f"enroll {role} {name} {' '.join(options)} --out {{pki}}/out")
        self.hub.ssh(
            f"sudo {FLEET} pki broker /etc/mosquitto/fleet --user mosquitto --pki {_PKI} --reload"
        )
        folder = self.lab.folder / "keys" / name
        folder.mkdir(parents=True)
        for file in ("ca.pem", "key.pem", "cert.pem"):
            text = self.hub.ssh(f"sudo cat {_PKI}/out/{name}/{file}").stdout
            (folder / file).write_text(text)
            (folder / file).chmod(0o600)
        return folder

    def fleet(self, identity: Path, *words: str) -> None:
        """Run `fleet` over mutual TLS, from the boards' network."""
        who = ("--broker", f"mqtts://{self.hub.address}:8883", "--identity", str(identity))
        line = self.lab.on_lan(sys.executable, "-m", "fleet_cli", *words, *who)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def info_of(self, worker: str) -> dict[str, Any]:
        """Return what a worker says of itself, as the dispatcher hears it."""
        words = (
            f"sudo {FLEET} workers show {worker} --json --broker mqtts://{self.hub.address}:8883"
        )
        said = self.hub.ssh(f"{words} --identity /etc/edgefleet/identities/verify-look").stdout
        info: dict[str, Any] = json.loads(said)["info"]
        return info

    def ask(self, identity: Path, question: str, *options: str) -> dict[str, Any]:
        """Ask over mutual TLS, from the boards' network."""
        return ask(self.lab, f"mqtts://{self.hub.address}:8883", identity, question, *options)


def built_model() -> Path | None:
    """Return the folder of the default model, where it was built."""
    built = sorted((cache_root(os.environ) / "models" / DEFAULT_MODEL).glob("*/manifest.json"))
    return built[-1].parent if built else None


def another_version(model: Path, folder: Path) -> Path:
    """Return an artefact of the same files that says it is of version ANOTHER."""
    made = folder / ANOTHER
    made.mkdir(parents=True)
    for file in model.iterdir():
        (made / file.name).symlink_to(file)
    manifest = json.loads((model / "manifest.json").read_bytes()) | {"version": ANOTHER}
    (made / "manifest.json").unlink()
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def sealed(model: Path, folder: Path) -> dict[str, str]:
    """Seal a model with a new key; return an operator's settings for boards that get it."""
    key, out = folder / "models.key", folder / "sealed"
    for words in (
        ["fleet_cli", "pki", "key", str(key)],
        ["models", "encrypt", str(model), "--key-file", str(key), "--out", str(out)],
    ):
        subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    return {"fleet_model": str(out), "worker_model_key": key.read_text().strip()}


def faults_of(board: Board) -> tuple[list[Any], set[str]]:
    """Return what `fleet doctor` finds wrong on a board, and the names of all that it looked at."""
    words = f"sudo {FLEET} doctor --json"
    checks = json.loads(board.ssh(words, check=False).stdout)["checks"]
    return [one for one in checks if one["needed"] and not one["ok"]], {
        one["name"] for one in checks
    }


def exposure_of(board: Board, unit: str) -> float:
    """Return how open to attacks systemd finds a service: 0 is safest, 10 is open."""
    words = board.ssh(f"systemd-analyze security --no-pager {unit}").stdout.splitlines()[-1]
    return float(words.partition(".service: ")[2].split()[0])


def settings_for(wheelhouse: Path, *, with_model: bool = True) -> dict[str, Any]:
    """Return an operator's settings: the default model where it was built, else the echo engine."""
    settings: dict[str, Any] = {
        "fleet_version": __version__,
        "fleet_wheelhouse": str(wheelhouse),
        # A container has its host's clock, and systemd-timesyncd knows that.
        "base_timesync": False,
        # On a machine that others use as well nothing is quick.
        "verify_patience_s": 900,
        "verify_timeout_s": 300,
    }
    model = built_model()
    if model and with_model:
        return settings | {"fleet_model": str(model)}
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


def spooled(board: Board) -> list[tuple[bytes, str | None]]:
    """Read a worker's spool from outside, whatever its link: assignments and kinds of outcome."""
    with TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            copy(f"{board.root}/{SPOOL}{suffix}", f"{folder}/spool{suffix}")
        with closing(sqlite3.connect(f"{folder}/spool")) as database:
            return database.execute("SELECT assignment, kind FROM attempts").fetchall()
