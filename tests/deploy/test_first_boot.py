"""From a blank card to the first answer: cloud-init reads what `fleet image render` wrote.

Debian's own cloud-init, on boards that know no more than their card says. `make boards`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_protocol import __version__
from tests.deploy.base_image import base_images
from tests.deploy.board_lab import Board, BoardLab
from tests.deploy.card_site import SEEDS, CardSite, put_in
from tests.deploy.field_site import PYTHONS, built_model, exposure_of, faults_of
from tests.deploy.patience import wait_until
from tests.deploy.releases import Target, fill_wheelhouse

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1_800)]

HOSTS = {"bookworm": "pi-12", "trixie": "pi-13"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, boards_can_start: None) -> Iterator[BoardLab]:  # noqa: ARG001 - looks first
    base_images(HOSTS)
    with BoardLab(tmp_path_factory.mktemp("cards")) as lab:
        yield lab


@pytest.fixture(scope="module")
def site(lab: BoardLab) -> Iterator[CardSite]:
    folder = lab.folder / "site"
    folder.mkdir()
    with CardSite(lab, folder) as site:
        yield site


@pytest.fixture(scope="module", params=HOSTS)
def board(request: pytest.FixtureRequest, lab: BoardLab, site: CardSite, wheelhouse: Path) -> Board:
    """A board that was switched on with its card, and lost power while it installed.

    One of them got a card that was not copied to its end, and the rest of it later.
    """
    suite: str = request.param
    target = Target.board(PYTHONS[suite])
    fill_wheelhouse(wheelhouse, target)
    archive = wheelhouse / target.archive
    card = site.render(HOSTS[suite], "--wheels", str(archive), *engine_of(suite))
    board = lab.add(suite, suite=suite)
    put_in(card, board, seed=SEEDS[suite])
    wheels = board.root / SEEDS[suite] / "edgefleet/wheels.tar"
    if suite == "bookworm":
        wheels.write_bytes(b"half of it")
    board.switch_on()
    if suite == "bookworm":
        wait_for(board, "sudo journalctl -u first-boot-edgefleet | grep -q bad_archive")
        shutil.copyfile(archive, wheels)
    home = f"/opt/edgefleet/{__version__}"
    wait_for(board, f"test -e {home}/venv/bin/python")
    assert board.ssh(f"test -e {home}/.whole", check=False).returncode != 0
    board.cut_power()
    board.switch_on()
    wait_for(board, "systemctl is-active --quiet edgefleet-worker")
    return board


def engine_of(suite: str) -> list[str]:
    """Return with what a board answers: one of them with the default model, where it was built."""
    model = built_model()
    if suite == "trixie" and model:
        return ["--model", str(model)]
    return ["--engine", "echo"]


def wait_for(board: Board, words: str) -> None:
    """Wait until a command succeeds on a board, also one that starts anew meanwhile."""

    def succeeds() -> bool:
        if not board.is_on:
            # A container ends where a machine starts again.
            board.switch_on()
        return board.ssh(words, check=False).returncode == 0

    wait_until(succeeds, lambda: _told(board))


def _told(board: Board) -> str:
    units = "-u first-boot-edgefleet -u edgefleet-worker -u cloud-init -u cloud-final"
    words = f"sudo journalctl --no-pager -n 60 {units}; sudo cloud-init status --long"
    return board.ssh(words, check=False).stdout


def host_of(board: Board) -> str:
    return HOSTS[board.name]


def seed_of(board: Board) -> str:
    return f"/{SEEDS[board.name]}"


def test_the_board_joined_by_itself_and_answers(board: Board, site: CardSite) -> None:
    result = site.ask("What is the capital of France?", "--label", f"board={host_of(board)}")
    assert (result["status"], result["answered_by"]) == ("ok", "edge")
    assert result["worker"] == host_of(board)
    assert "France" in result["text"] or "Paris" in result["text"]
    assert f'"worker":"{host_of(board)}"' in site.log("authority")


def test_its_name_and_its_user_are_the_cards(board: Board, lab: BoardLab) -> None:
    assert board.ssh("hostname").stdout.strip() == host_of(board)
    line = lab.on_lan("ssh", *board.ssh_options(), f"pi@{board.address}", "sudo", "id", "-u")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "0", done.stderr
    shadow = board.ssh("sudo grep ^pi: /etc/shadow").stdout
    assert shadow.split(":")[1].startswith("!")


def test_cloud_init_finds_nothing_wrong_with_the_card(board: Board) -> None:
    board.ssh(f"sudo cloud-init schema --config-file {seed_of(board)}/user-data")
    status = board.ssh("sudo cloud-init status", check=False).stdout
    assert "status: done" in status, _told(board)
    words = "sudo cloud-init schema --schema-type network-config --config-file"
    if "schema-type" in board.ssh("cloud-init schema --help").stdout:
        board.ssh(f"{words} {seed_of(board)}/network-config")


def test_nothing_secret_is_left_on_the_card(board: Board) -> None:
    token = f"fleet1.{host_of(board)}."
    seen = board.ssh(f"sudo grep -rls {token} {seed_of(board)} /boot /etc /opt", check=False).stdout
    assert seen == ""
    left = set(board.ssh(f"sudo ls {seed_of(board)}").stdout.split())
    assert left - {"cmdline.txt"} == {"meta-data", "network-config", "user-data"}


def test_what_only_the_first_boot_needs_is_gone(board: Board) -> None:
    assert board.ssh("ls -A /etc/edgefleet").stdout.split() == [
        "ca.pem",
        "identities",
        "worker.toml",
    ]
    assert board.ssh("systemctl cat first-boot-edgefleet", check=False).returncode != 0
    assert board.ssh("readlink /opt/edgefleet/current").stdout.strip() == __version__
    assert "cgroup_enable=memory" in board.ssh("cat /boot/firmware/cmdline.txt").stdout


def test_the_service_is_as_locked_in_as_ansible_makes_it(board: Board) -> None:
    assert exposure_of(board, "edgefleet-worker") <= 2.0
    key = board.ssh("sudo stat -c '%a %U' /etc/edgefleet/identities/worker.key").stdout
    assert key.strip() == "600 root"
    settings = board.ssh("sudo stat -c '%a %G' /etc/edgefleet/worker.toml").stdout
    assert settings.strip() == "640 edgefleet-worker"


def test_the_doctor_finds_the_board_well(board: Board) -> None:
    faults, checked = faults_of(board)
    assert faults == []
    assert checked >= {"packages [edge]", "processor", "certificate", "way to the broker", "clock"}


def test_the_next_start_is_an_ordinary_one(board: Board) -> None:
    before = board.ssh("sudo sha256sum /etc/edgefleet/identities/worker.key").stdout
    board.switch_off()
    board.switch_on()
    wait_for(board, "systemctl is-active --quiet edgefleet-worker")
    assert board.ssh("sudo sha256sum /etc/edgefleet/identities/worker.key").stdout == before
    log = board.ssh("sudo journalctl -b -u first-boot-edgefleet --no-pager").stdout
    assert "first-boot:" not in log
