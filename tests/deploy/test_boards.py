"""A site from blank boards to none: real systemd, real SSH, no internet.

The tests are one story in order, for each step takes minutes: `make boards`. The hub is the cloud
host; the boards answer with the default model.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from fleet_protocol import __version__
from tests.conftest import require
from tests.deploy.base_image import base_images
from tests.deploy.board_lab import BoardLab
from tests.deploy.field_site import (
    ANOTHER,
    FLEET,
    PYTHONS,
    Site,
    another_version,
    exposure_of,
    faults_of,
    sealed,
    settings_for,
    spooled,
    version_of,
    wait_until_active,
)
from tests.deploy.patience import wait_until
from tests.deploy.releases import Target, add_release, fill_wheelhouse
from tests.deploy.traffic import Traffic

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1_800)]

NEXT: Final = "9.1.0"
BROKEN: Final = "9.2.0"
BOARDS: Final = {"pi-1": "bookworm", "pi-2": "bookworm", "pi-3": "trixie"}
SEALED: Final = "pi-2"
"""It gets the model sealed, and the key in a credential of systemd's."""
WATCHDOG_S: Final = 30
CUT_S: Final = 120.0
"""Far beyond lease and keepalive (30 s) and the silence after which a board is gone (20 s)."""
MISSED_S: Final = 50.0
"""After one and a half keepalives the broker says that a board is gone. A dispatcher that starts
before that takes it for there and gives it jobs, which ends the attempts that it had."""


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    wheelhouse: Path,
    boards_can_start: None,  # noqa: ARG001 - looks first
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("boards")
    settings = settings_for(wheelhouse)
    require("fleet_model" in settings, "the default model (`make model` builds it)")
    base_images(BOARDS.values())
    pythons = sorted({PYTHONS[suite] for suite in BOARDS.values()})
    targets = (Target.board(python) for python in pythons)
    fill_wheelhouse(wheelhouse, Target.hub(PYTHONS["bookworm"]), *targets)
    add_release(wheelhouse, folder / "next", NEXT)
    add_release(wheelhouse, folder / "broken", BROKEN, breaks="this release was never tried out")
    with BoardLab(folder) as lab:
        lab.add("hub")
        for name, suite in BOARDS.items():
            lab.add(name, suite=suite)
        for board in lab.boards.values():
            board.switch_on()
        own = {SEALED: sealed(Path(settings["fleet_model"]), folder)}
        settings |= {"worker_watchdog_s": WATCHDOG_S, "broker_password_tls": "1.2"}
        yield Site(lab, settings, own)


@pytest.fixture(scope="module")
def door(site: Site) -> Path:
    """The key and certificate of a device."""
    return site.enrol("device", "door")


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
        assert exposure_of(board, unit) <= 2.0, (board.name, unit)


def test_the_doctor_finds_every_board_well(site: Site) -> None:
    for board in site.boards.values():
        faults, checked = faults_of(board)
        assert faults == [], board.name
        assert checked >= {"packages [edge]", "certificate", "way to the broker"}


def test_the_weekly_renewal_may_do_what_it_has_to(site: Site) -> None:
    site.hub.ssh("sudo systemctl start edgefleet-broker-renewal")
    broker = site.hub.ssh("sudo journalctl -u 'edgefleet-broker*'").stdout
    assert "Reloading config" in broker


def test_passwords_come_over_the_tls_that_the_operator_chose(site: Site) -> None:
    site.as_authority("enroll device meter --password --out {pki}/out")
    # Who writes the broker's folder later on says nothing of TLS. The first password opens a port.
    site.hub.ssh("sudo systemctl start edgefleet-broker-renewal")
    site.hub.ssh("sudo systemctl restart edgefleet-broker")
    for port, is_let_in in ((8_884, True), (8_883, False)):
        words = f"openssl s_client -connect 127.0.0.1:{port} -tls1_2 < /dev/null"
        done = site.hub.ssh(words, check=False)
        assert (done.returncode == 0) is is_let_in, done.stdout + done.stderr


def test_whom_the_broker_turns_away_is_noted(site: Site) -> None:
    folder = "/var/lib/edgefleet/broker-audit"
    words = f"sudo {FLEET} audit export {folder} --what broker.refused"
    wait_until(
        lambda: '"connection"' in site.hub.ssh(words).stdout,
        lambda: site.hub.ssh("sudo journalctl -n 30 -u edgefleet-broker-audit").stdout,
    )


def test_a_device_is_answered_over_mutual_tls(site: Site, door: Path) -> None:
    result = site.ask(door, "What is the capital of France?")
    assert (result["status"], result["answered_by"]) == ("ok", "edge")
    assert result["worker"] in BOARDS
    assert "France" in result["text"] or "Paris" in result["text"]


def test_a_sealed_model_answers_and_lies_nowhere_in_the_open(site: Site, door: Path) -> None:
    board = site.boards[SEALED]
    result = site.ask(door, "What is the capital of France?", "--label", f"board={SEALED}")
    assert (result["status"], result["worker"]) == ("ok", SEALED)
    assert "France" in result["text"] or "Paris" in result["text"]
    files = board.ssh("find /opt/edgefleet/models -type f -printf '%f\n'").stdout.split()
    assert "model.onnx.data.sealed" in files
    assert {name for name in files if not name.endswith(".sealed")} == {"manifest.json"}
    # Not the key, either: what systemd gives to the worker is in memory, and sealed to this board.
    key = str(site.operator.own[SEALED]["worker_model_key"])
    # From outside: what is run on the board with `sudo` stands in its journal.
    grep = ["grep", "-rlF", key, str(board.written)]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""
    credential = "/etc/edgefleet/identities/model.key.cred"
    opened = f"sudo systemd-creds decrypt --name=model.key {credential} -"
    assert board.ssh(opened).stdout.strip() == key
    other = site.boards["pi-1"]
    (other.root / "home/ops/model.key.cred").write_bytes((board.root / credential[1:]).read_bytes())
    refused = other.ssh(opened.replace(credential, "/home/ops/model.key.cred"), check=False)
    assert refused.returncode != 0
    assert key not in refused.stdout


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
    wait_until(lambda: int(board.ssh(f"{show} -p NRestarts").stdout) > restarts)
    wait_until_active(board, "edgefleet-worker")
    assert "watchdog" in board.ssh("sudo journalctl -u edgefleet-worker").stdout.lower()


def test_a_worker_told_to_reload_is_started_again_and_did_not_fail(site: Site) -> None:
    board = site.boards["pi-1"]

    def failures() -> int:
        journal = board.ssh("sudo journalctl -u edgefleet-worker").stdout
        return journal.count("Failed with result")

    failed, boot = failures(), site.info_of("pi-1")["boot"]
    site.fleet(site.enrol("admin", "chief"), "workers", "reload", "pi-1")
    wait_until(lambda: site.info_of("pi-1")["boot"] != boot)
    wait_until_active(board, "edgefleet-worker")
    assert failures() == failed


def test_a_key_beside_a_certificate_of_another_is_replaced(site: Site) -> None:
    board = site.boards["pi-1"]
    key, certificate = "/etc/edgefleet/identities/worker.key", "/var/lib/edgefleet/worker/cert.pem"
    board.ssh(f"sudo openssl ecparam -name prime256v1 -genkey -noout -out {key}")
    site.operator.must_play("flash", "--limit", "pi-1")
    ours = board.ssh(f"sudo openssl pkey -in {key} -pubout").stdout
    assert ours == board.ssh(f"sudo openssl x509 -in {certificate} -noout -pubkey").stdout


def test_a_board_out_of_reach_does_not_hold_up_the_others(site: Site) -> None:
    gone = site.boards["pi-2"]
    gone.plug(connected=False)
    recap = site.operator.play("site", "--tags", "workers", worker_labels={"site": "lab"})
    gone.plug(connected=True)
    assert recap.unreachable == {"pi-2"}
    assert recap.failed == set()
    for name in BOARDS.keys() - {"pi-2"}:
        assert "lab" in site.boards[name].ssh("sudo cat /etc/edgefleet/worker.toml").stdout


def test_a_broken_release_stops_at_the_first_board_which_goes_back(site: Site) -> None:
    recap = site.operator.play(
        "upgrade", "--tags", "workers", fleet_version=BROKEN, verify_patience_s=30
    )
    assert recap.returncode != 0
    assert recap.failed == {"pi-1"}
    first, *others = site.boards.values()
    assert version_of(first) == __version__
    wait_until_active(first, "edgefleet-worker")
    # Nobody touched the next ones.
    for board in others:
        assert BROKEN not in board.ssh("ls /opt/edgefleet").stdout


def test_a_board_cut_off_for_minutes_holds_up_no_upgrade_and_loses_no_answer(
    site: Site, door: Path
) -> None:
    """The first board's link breaks while it works; meanwhile all others get another version."""
    board = site.boards["pi-1"]
    with Traffic(site.lab, site.hub, door) as traffic:
        for number in range(16):
            traffic.ask(
                f"Name {number} things that are red.",
                needs={"label": "board=pi-1"},
                max_tokens=64,
                deadline_ms=1_200_000,
            )
        wait_until(lambda: len(traffic.results) > 0)
        board.plug(connected=False)
        cut_at_s = time.monotonic()
        # What it had begun it finishes, and keeps.
        wait_until(lambda: all(kind == "done" for _, kind in spooled(board)))
        kept = {_number(assignment) for assignment, _ in spooled(board)}
        time.sleep(max(0.0, cut_at_s + MISSED_S - time.monotonic()))
        recap = site.operator.play("upgrade", fleet_version=NEXT)
        time.sleep(max(0.0, cut_at_s + CUT_S - time.monotonic()))
        is_answered = {_number(str(result["id"])) for result in traffic.results}
        board.plug(connected=True)
        results = traffic.finish()
    assert recap.returncode != 0
    assert recap.failed == {"pi-1"}
    assert "pi-1 was out of reach" in recap.text
    others = (site.hub, *(one for name, one in site.boards.items() if name != "pi-1"))
    assert {version_of(one) for one in others} == {NEXT}
    assert version_of(board) == __version__
    assert kept - is_answered, "nothing was kept for later: the cut came too late"
    for result in results.values():
        assert (result["status"], result["worker"]) == ("ok", "pi-1")
    for number in kept:
        # What was finished while it was alone was not made again.
        assert results[f"door-{number}"]["attempts"] == 1


def _number(text: bytes | str) -> int:
    found = re.search(r"(?:Name |door-)(\d+)", text.decode() if isinstance(text, bytes) else text)
    assert found
    return int(found[1])


@pytest.mark.parametrize(
    ("sign", "left_on"),
    [
        pytest.param(f"opt/edgefleet/{NEXT}/venv/bin/pip", __version__, id="half installed"),
        pytest.param("opt/edgefleet/.unproved", NEXT, id="in use and not proved"),
    ],
)
def test_a_power_cut_in_the_middle_of_an_upgrade_leaves_one_whole_version(
    site: Site, sign: str, left_on: str
) -> None:
    board = site.boards["pi-1"]
    play = Thread(
        target=site.operator.play,
        args=("upgrade", "--limit", "pi-1"),
        kwargs={"fleet_version": NEXT},
    )
    play.start()
    wait_until((board.root / sign).exists)
    wait_until(lambda: (board.root / "opt/edgefleet/current").readlink().name == left_on)
    board.cut_power()
    board.switch_on()
    play.join()
    wait_until_active(board, "edgefleet-worker")
    assert version_of(board) == left_on
    whole = board.ssh("ls -d /opt/edgefleet/*/.whole").stdout
    assert f"/{left_on}/" in whole
    assert (f"/{NEXT}/" in whole) == (left_on == NEXT)


def test_an_interrupted_upgrade_is_finished_by_the_next_one(site: Site) -> None:
    site.operator.must_play("upgrade", fleet_version=NEXT)
    for board in site.boards.values():
        assert version_of(board) == NEXT
        assert ".unproved" not in board.ssh("ls -A /opt/edgefleet").stdout
    recap = site.operator.must_play("upgrade", fleet_version=NEXT)
    assert set(recap.changed.values()) == {0}, recap.text


def test_back_to_the_version_before_by_hand(site: Site) -> None:
    site.operator.must_play("rollback", "--limit", "workers")
    assert {version_of(board) for board in site.boards.values()} == {__version__}


def test_another_model_goes_out_in_waves(site: Site, door: Path) -> None:
    model = another_version(Path(site.operator.settings["fleet_model"]), site.lab.folder / "model")
    open_boards = sorted(set(BOARDS) - {SEALED})
    waves = ("models", "--limit", ",".join(open_boards))
    site.operator.must_play(*waves, fleet_model=str(model))
    for name in open_boards:
        result = site.ask(door, "What is the capital of France?", "--label", f"board={name}")
        assert (result["status"], result["worker"]) == ("ok", name)
        (told,) = site.info_of(name)["models"]
        assert told["version"] == ANOTHER
    recap = site.operator.must_play(*waves, fleet_model=str(model))
    assert {recap.changed[name] for name in open_boards} == {0}, recap.text


def test_new_keys_for_everybody_cost_no_job(site: Site, door: Path) -> None:
    before = _keys(site)
    with Traffic(site.lab, site.hub, door) as traffic:
        with traffic.steadily(every_s=1.0):
            site.operator.must_play("rotate_certs")
        results = traffic.finish()
    after = _keys(site)
    assert not set(before.values()) & set(after.values())
    assert set(results) == set(traffic.asked)
    assert {result["status"] for result in results.values()} == {"ok"}


def test_a_worker_renews_its_own_certificate_at_work(site: Site, door: Path) -> None:
    board = site.boards["pi-2"]
    # A certificate begins an hour back, so this one is due at once; but the authority gives the
    # same again until half of the minute is over.
    short = site.enrol("worker", "pi-2", "--again", "--valid", "1min")
    certificate = "var/lib/edgefleet/worker/cert.pem"
    holds_tomorrow = f"sudo openssl x509 -noout -checkend 86400 -in /{certificate}"
    with Traffic(site.lab, site.hub, door) as traffic:
        with traffic.steadily(every_s=1.0):
            for name, place in (
                ("key.pem", "etc/edgefleet/identities/worker.key"),
                ("cert.pem", certificate),
            ):
                (board.root / place).write_text((short / name).read_text())
            assert board.ssh(holds_tomorrow, check=False).returncode != 0
            board.ssh("sudo systemctl restart edgefleet-worker")
            wait_until(
                lambda: board.ssh(holds_tomorrow, check=False).returncode == 0,
                lambda: (
                    board.ssh("sudo journalctl -n 30 -u edgefleet-worker").stdout
                    + site.hub.ssh("sudo journalctl -n 30 -u edgefleet-authority").stdout
                ),
            )
            # The new one is good for a connection.
            board.ssh("sudo systemctl restart edgefleet-worker")
            assert site.ask(door, "How are you?", "--label", "board=pi-2")["worker"] == "pi-2"
        results = traffic.finish()
    assert set(results) == set(traffic.asked)
    assert {result["status"] for result in results.values()} == {"ok"}


def _keys(site: Site) -> dict[str, str]:
    return {
        name: board.ssh("sudo sha256sum /etc/edgefleet/identities/worker.key").stdout.split()[0]
        for name, board in site.boards.items()
    }


def test_a_reset_leaves_nothing_behind(site: Site) -> None:
    site.operator.must_play("reset")
    for board in (site.hub, *site.boards.values()):
        words = (
            "sudo find / -xdev -iname '*edgefleet*' -not -path '/var/log/*' -not -path '/proc/*'"
        )
        assert board.ssh(words).stdout == ""
        assert "edgefleet" not in board.ssh("cat /etc/passwd /etc/group").stdout
        assert board.ssh("systemctl list-units --all --no-legend 'edgefleet*'").stdout == ""
