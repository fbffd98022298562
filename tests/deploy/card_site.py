"""A cloud host's programs on the boards' network, and boards that nobody but their card sets up."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from fleet_cli.__main__ import run
from fleet_cli.broker_site import Site, reload_broker, write_site
from fleet_cli.exits import ExitCode
from fleet_cli.pki import hand_out, now_ms
from fleet_pki.authority import Authority, Enrolment, PkiFolder, found
from fleet_pki.registry import Secret
from fleet_protocol.access import Identity
from fleet_protocol.topics import Role, Topics
from tests.deploy.base_image import NO_CLOUD_INIT
from tests.deploy.board_lab import NETWORK, Board, BoardLab
from tests.deploy.patience import wait_until
from tests.deploy.traffic import ask

HUB: Final = f"{NETWORK}.1"
SEEDS: Final = {"trixie": "boot/firmware", "bookworm": "var/lib/cloud/seed/nocloud"}
"""Where cloud-init looks: on Debian 13 as Raspberry Pi OS has it, on Debian 12 as anybody else."""
_CLOUD_SETTINGS: Final = """\
datasource_list: [NoCloud, None]
# As on Raspberry Pi OS: host keys are left alone.
ssh_deletekeys: false
ssh_genkeytypes: []
"""
_ON_BOOT_PARTITION: Final = 'datasource: {NoCloud: {seedfrom: "file:///boot/firmware"}}\n'
_CMDLINE: Final = "console=tty1 root=PARTUUID=5c6b8f2a-02 rootfstype=ext4 rootwait\n"


class CardSite:
    """Authority, broker and dispatcher on the boards' network. Lifetime is `with`."""

    def __init__(self, lab: BoardLab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self.pki = PkiFolder(folder / "pki")
        self.url = f"mqtts://{HUB}:8883"
        self._keys = folder / "keys"
        self._site = Site(folder=folder / "broker", topics=Topics(), user="root")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        found(self.pki, "cards", now_ms=now_ms())
        for role in (Role.DISPATCHER, Role.AUTHORITY, Role.DEVICE):
            wish = Enrolment(identity=Identity(role=role, id=role.value))
            with Authority(self.pki) as authority:
                authority.enrol([wish], hand_out(self._keys, again=False), now_ms=now_ms())
        # A token opens the password port: a reload opens none.
        wish = Enrolment(identity=Identity(role=Role.DEVICE, id="port"), secret=Secret.PASSWORD)
        with Authority(self.pki) as authority:
            authority.enrol([wish], hand_out(self._keys, again=False), now_ms=now_ms())
        self._write()
        mosquitto = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._start("broker", [mosquitto, "-c", str(self._site.folder / "mosquitto.conf")])
        wait_until((self._site.folder / "mosquitto.pid").exists, lambda: self.log("broker"))
        fleet = [sys.executable, "-m", "fleet_cli", "pki", "serve", "--broker", self.url]
        who = ["--identity", str(self._keys / "authority"), "--pki", str(self.pki)]
        self._start("authority", [*fleet, *who])
        data = ["--data", str(self._folder / "data")]
        self._start("dispatcher", [sys.executable, "-m", "cloud_dispatcher", "run", *data])
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def render(self, host: str, *words: str) -> Path:
        """Have a card made for a board, and tell the broker of it."""
        card = self._folder / f"card-{host}"
        key = str(self._lab.key.with_suffix(".pub"))
        where = ["--broker", self.url, "--pki", str(self.pki), "--out", str(card)]
        line = ["image", "render", "--board", "rpi", "--host", host, *where, "--ssh-key", key]
        assert run([*line, *words]) == ExitCode.OK
        self._write()
        reload_broker(self._site.folder)
        return card

    def ask(self, question: str, *options: str) -> dict[str, Any]:
        """Ask as a device until somebody answers."""
        return ask(self._lab, self.url, self._keys / "device", question, *options)

    def log(self, name: str) -> str:
        """Return what one of the programs said."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _write(self) -> None:
        with Authority(self.pki) as authority:
            write_site(authority, self._site, hosts=(HUB,), now_ms=now_ms())

    def _start(self, name: str, words: list[str]) -> None:
        keys = self._keys / "dispatcher"
        prefix = "EDGEFLEET_DISPATCHER_BROKER__"
        environ = {
            f"{prefix}URL": self.url,
            f"{prefix}TLS__CA_FILE": str(keys / "ca.pem"),
            f"{prefix}TLS__CERT_FILE": str(keys / "cert.pem"),
            f"{prefix}TLS__KEY_FILE": str(keys / "key.pem"),
        }
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self._lab.on_lan(*words),
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._stack.callback(process.wait, 60)
        self._stack.callback(process.terminate)


def put_in(card: Path, board: Board, *, seed: str) -> None:
    """Copy a card's files to where the board's cloud-init looks, as a person does."""
    there = board.root / seed
    shutil.copytree(card, there, dirs_exist_ok=True)
    there.chmod(0o755)
    (board.root / NO_CLOUD_INIT).unlink()
    boot = board.root / "boot/firmware"
    boot.mkdir(exist_ok=True)
    (boot / "cmdline.txt").write_text(_CMDLINE)
    settings = _CLOUD_SETTINGS + (_ON_BOOT_PARTITION if there == boot else "")
    (board.root / "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg").write_text(settings)
