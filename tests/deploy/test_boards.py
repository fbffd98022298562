"""A site from blank boards to none: real systemd, real SSH, no internet.

The tests are one story in order, for each step takes minutes: `make boards`. The hub is the cloud
host; the boards answer with the echo engine, or with the default model where it was built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from fleet_protocol import __version__
from fleet_protocol.manifest import DEFAULT_MODEL
from models.cache import cache_root
from tests.deploy.board_lab import Board, BoardLab
from tests.deploy.playbooks import Operator
from tests.deploy.releases import add_release, fill_wheelhouse

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1_800)]

NEXT: Final = "9.1.0"
BROKEN: Final = "9.2.0"
BOARDS: Final = {"pi-1": "bookworm", "pi-2": "trixie"}
PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}
HUB_UNITS: Final = ("edgefleet-broker", "edgefleet-authority", "edgefleet-dispatcher")
WATCHDOG_S: Final = 30
PATIENCE_S: Final = 180.0


class Site:
    """The hub, the boards, and who runs them."""

    def __init__(self, lab: BoardLab, operator: Operator) -> None:
        self.hub = lab.boards["hub"]
        self.boards = {name: lab.boards[name] for name in BOARDS}
        self.operator = operator
        self._lab = lab

    def units(self) -> Iterator[tuple[Board, str]]:
        yield from ((self.hub, unit) for unit in HUB_UNITS)
        yield from ((board, "edgefleet-worker") for board in self.boards.values())

    def enrol_device(self, name: str) -> Path:
        """Enrol a device on the hub and carry its key to whoever asks."""
        pki = "/var/lib/edgefleet/authority"
        fleet = "/opt/edgefleet/current/venv/bin/fleet"
        as_authority = f"sudo runuser -u edgefleet-authority -- {fleet}"
        self.hub.ssh(f"{as_authority} enroll device {name} --out {pki}/{name} --pki {pki}")
        self.hub.ssh(
            f"sudo {fleet} pki broker /etc/mosquitto/fleet --user mosquitto --pki {pki} --reload"
        )
        folder = self._lab.folder / "keys" / name
        folder.mkdir(parents=True)
        for file in ("ca.pem", "key.pem", "cert.pem"):
            text = self.hub.ssh(f"sudo cat {pki}/{name}/{name}/{file}").stdout
            (folder / file).write_text(text)
            (folder / file).chmod(0o600)
        return folder

    def ask(self, identity: Path, question: str) -> dict[str, Any]:
        """Ask over mutual TLS, from the boards' network."""
        fleet = [sys.executable, "-m", "fleet_cli", "ask", question, "--json", "--cache", "off"]
        who = ["--broker", f"mqtts://{self.hub.address}:8883", "--identity", str(identity)]
        done = subprocess.run(
            self._lab.on_lan(*fleet, *who), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def version_of(self, board: Board) -> str:
        return board.ssh("readlink /opt/edgefleet/current").stdout.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, boards_can_start: None) -> Iterator[Site]:  # noqa: ARG001 - looks first
    folder = tmp_path_factory.mktemp("boards")
    wheelhouse = folder / "wheelhouse"
    pythons = sorted({PYTHONS[suite] for suite in BOARDS.values()})
    fill_wheelhouse(wheelhouse, hub_python=PYTHONS["bookworm"], board_pythons=pythons)
    add_release(wheelhouse, folder / "next", NEXT)
    add_release(wheelhouse, folder / "broken", BROKEN, breaks="this release was never tried out")
    with BoardLab(folder) as lab:
        hub = lab.add("hub")
        for name, suite in BOARDS.items():
            lab.add(name, suite=suite)
        for board in lab.boards.values():
            board.switch_on()
        operator = Operator(lab, hub, _settings(wheelhouse))
        yield Site(lab, operator)


def _settings(wheelhouse: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "fleet_version": __version__,
        "fleet_wheelhouse": str(wheelhouse),
        # A container has its host's clock, and systemd-timesyncd knows that.
        "base_timesync": False,
        "worker_watchdog_s": WATCHDOG_S,
        "verify_patience_s": 120,
    }
    built = sorted((cache_root(os.environ) / "models" / DEFAULT_MODEL).glob("*/manifest.json"))
    if built:
        return settings | {"fleet_model": str(built[-1].parent)}
    echo = {"worker_engine": "echo", "verify_question": "golden", "verify_expect": "golden"}
    return settings | echo


def wait_until_active(board: Board, unit: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while board.ssh("systemctl", "is-active", unit, check=False).stdout.strip() != "active":
        assert time.monotonic() < deadline_s, board.ssh(f"sudo journalctl -n 30 -u {unit}").stdout
        time.sleep(0.5)


def test_check_mode_changes_nothing_on_a_blank_board(site: Site) -> None:
    recap = site.operator.play("site", "--check", "--diff")
    assert recap.returncode == 0, recap.text[-4_000:]
    for board in (site.hub, *site.boards.values()):
        assert board.ssh("ls -A /opt /etc/edgefleet", check=False).stdout.strip() == "/opt:"


def test_blank_boards_become_a_fleet(site: Site) -> None:
    site.operator.must_play("site")
    for board, unit in site.units():
        assert board.ssh("systemctl", "is-active", unit).stdout.strip() == "active"


def test_a_second_run_changes_nothing(site: Site) -> None:
    recap = site.operator.must_play("site")
    assert set(recap.changed.values()) == {0}, recap.text


def test_every_unit_is_locked_in(site: Site) -> None:
    for board, unit in site.units():
        words = board.ssh(f"systemd-analyze security --no-pager {unit}").stdout.splitlines()[-1]
        exposure = float(words.partition(".service: ")[2].split()[0])
        assert exposure <= 2.0, words


def test_the_weekly_renewal_may_do_what_it_has_to(site: Site) -> None:
    site.hub.ssh("sudo systemctl start edgefleet-broker-renewal")
    broker = site.hub.ssh("sudo journalctl -u 'edgefleet-broker*'").stdout
    assert "Reloading config" in broker


def test_a_device_is_answered_over_mutual_tls(site: Site) -> None:
    door = site.enrol_device("door")
    result = site.ask(door, "What is the capital of France?")
    assert (result["status"], result["answered_by"]) == ("ok", "edge")
    assert result["worker"] in BOARDS
    assert "France" in result["text"] or "Paris" in result["text"]


def test_no_board_holds_what_makes_identities(site: Site) -> None:
    for board in site.boards.values():
        found = board.ssh("sudo find / -xdev -name '*issuing*' -o -xdev -name root.key").stdout
        assert "edgefleet" not in found
        key = board.ssh("sudo stat -c '%a %U' /etc/edgefleet/identities/worker.key").stdout
        assert key.strip() == "600 root"
    # Its root stays with the operator.
    assert site.hub.ssh("sudo find / -xdev -name root.key").stdout == ""
    assert (site.operator.authority / "root/root.key").exists()


def test_a_board_comes_back_from_a_power_cut_by_itself(site: Site) -> None:
    board = site.boards["pi-1"]
    board.cut_power()
    board.switch_on()
    wait_until_active(board, "edgefleet-worker")


def test_a_worker_that_stands_still_is_started_again(site: Site) -> None:
    board = site.boards["pi-1"]
    show = "systemctl show edgefleet-worker --value"
    restarts = int(board.ssh(f"{show} -p NRestarts").stdout)
    board.ssh(f"sudo kill -STOP $({show} -p MainPID)")
    deadline_s = time.monotonic() + PATIENCE_S
    while int(board.ssh(f"{show} -p NRestarts").stdout) == restarts:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    wait_until_active(board, "edgefleet-worker")
    assert "watchdog" in board.ssh("sudo journalctl -u edgefleet-worker").stdout.lower()


def test_a_board_out_of_reach_does_not_hold_up_the_others(site: Site) -> None:
    gone = site.boards["pi-2"]
    gone.plug(connected=False)
    recap = site.operator.play("site", worker_labels={"site": "lab"})
    gone.plug(connected=True)
    assert recap.unreachable == {"pi-2"}
    assert recap.failed == set()
    assert "lab" in site.boards["pi-1"].ssh("sudo cat /etc/edgefleet/worker.toml").stdout


def test_a_broken_release_stops_at_the_first_board_which_goes_back(site: Site) -> None:
    recap = site.operator.play(
        "upgrade", "--tags", "workers", fleet_version=BROKEN, verify_patience_s=20
    )
    assert recap.returncode != 0
    assert recap.failed == {"pi-1"}
    first, second = site.boards.values()
    assert site.version_of(first) == __version__
    wait_until_active(first, "edgefleet-worker")
    # Nobody touched the next one.
    assert BROKEN not in second.ssh("ls /opt/edgefleet").stdout


def test_a_good_release_goes_everywhere_and_back_by_hand(site: Site) -> None:
    site.operator.must_play("upgrade", fleet_version=NEXT)
    assert {site.version_of(board) for board in (site.hub, *site.boards.values())} == {NEXT}
    site.operator.must_play("rollback", "--limit", "workers")
    assert {site.version_of(board) for board in site.boards.values()} == {__version__}


def test_new_keys_for_everybody(site: Site) -> None:
    before = {
        name: board.ssh("sudo sha256sum /etc/edgefleet/identities/worker.key").stdout
        for name, board in site.boards.items()
    }
    site.operator.must_play("rotate_certs")
    for name, board in site.boards.items():
        after = board.ssh("sudo sha256sum /etc/edgefleet/identities/worker.key").stdout
        assert after != before[name]


def test_a_reset_leaves_nothing_behind(site: Site) -> None:
    site.operator.must_play("reset")
    for board in (site.hub, *site.boards.values()):
        words = (
            "sudo find / -xdev -iname '*edgefleet*' -not -path '/var/log/*' -not -path '/proc/*'"
        )
        assert board.ssh(words).stdout == ""
        assert "edgefleet" not in board.ssh("cat /etc/passwd /etc/group").stdout
        assert board.ssh("systemctl list-units --all --no-legend 'edgefleet*'").stdout == ""
