"""`fleet image render`: what is on a card, whom it lets in, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import edge_worker.config
from fleet_cli.__main__ import run
from fleet_cli.exits import ExitCode
from fleet_cli.image.board_files import HERE, ROLE_DEFAULTS
from fleet_cli.image.card import wifi_of
from fleet_protocol import __version__

ROOT: Final = Path(__file__).parents[2]
KEY: Final = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0mlBZnWXlPlBkHxJZ0J9aT5aYvWzT3bq1nQy4d1dUO ann@desk"
)
BROKER: Final = "mqtts://broker.example:8883"


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFLEET_PKI", str(tmp_path / "pki"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key.pub").write_text(f"{KEY}\n")
    assert run(["pki", "init"]) == ExitCode.OK
    return tmp_path


def render(*words: str, board: str = "rpi", host: str = "pi-7", engine: str = "echo") -> int:
    line = ["image", "render", "--board", board, "--host", host, "--broker", BROKER]
    return run([*line, "--ssh-key", "key.pub", "--engine", engine, *words])


def user_data(card: Path) -> dict[str, Any]:
    text = (card / "user-data").read_text()
    assert text.startswith("#cloud-config\n")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def laid(card: Path) -> dict[str, str]:
    return {file["path"]: file["content"] for file in user_data(card)["write_files"]}


def token_of(card: Path) -> str:
    return laid(card)[f"{HERE}/token"].strip()


def members(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert run(["pki", "ls", "--json"]) == ExitCode.OK
    return {one["id"]: one for one in json.loads(capsys.readouterr().out)["members"]}


def test_the_card_names_the_board_and_lets_its_user_in_by_key_alone(desk: Path) -> None:
    assert render() == ExitCode.OK
    document = user_data(desk / "pi-7")
    assert (document["hostname"], document["ssh_pwauth"]) == ("pi-7", False)
    (user,) = document["users"]
    assert (user["name"], user["lock_passwd"]) == ("pi", True)
    assert user["ssh_authorized_keys"] == [KEY]
    network = yaml.safe_load((desk / "pi-7/network-config").read_text())["network"]
    assert network == {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}}
    meta = yaml.safe_load((desk / "pi-7/meta-data").read_text())
    assert meta["local-hostname"] == "pi-7"
    assert meta["instance-id"].startswith("pi-7-")


def test_the_token_is_on_the_card_for_its_owner_alone_and_nowhere_else(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render("--json") == ExitCode.OK
    told = capsys.readouterr()
    token = token_of(desk / "pi-7")
    assert token.startswith("fleet1.pi-7.")
    assert token not in told.out + told.err
    for path in (desk / "pi-7").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((desk / "pi-7").stat().st_mode) == 0o700
    rendered = json.loads(told.out)
    assert {file["path"] for file in rendered["files"] if file["secret"]} == {
        *("firstrun.sh", "user-data"),
    }
    permissions = {f["path"]: f["permissions"] for f in user_data(desk / "pi-7")["write_files"]}
    assert permissions[f"{HERE}/token"] == "0600"
    assert members(capsys)["pi-7"]["secret"] == "token"


def test_until_when_the_board_must_have_joined_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert render("--valid", "7d", "--json") == ExitCode.OK
    expires_at_ms = json.loads(capsys.readouterr().out)["expires_at_ms"]
    assert render("--valid", "90min", "--again", "--json") == ExitCode.OK
    sooner_ms = json.loads(capsys.readouterr().out)["expires_at_ms"]
    assert 6 * 86_400_000 < expires_at_ms - sooner_ms < 7 * 86_400_000
    assert render(host="pi-8") == ExitCode.OK
    assert re.search(r"pi-8 must have joined by 20\d\d-\d\d-\d\d", capsys.readouterr().err)


def test_the_worker_takes_the_settings_that_the_card_lays_there(desk: Path) -> None:
    model = built_model(desk)
    assert render("--label", "site=north", "--model", str(model), engine="onnx") == ExitCode.OK
    config = desk / "worker.toml"
    config.write_text(laid(desk / "pi-7")["/etc/edgefleet/worker.toml"])
    settings = edge_worker.config.load_settings(config=config, environ={}, flags={})
    assert settings.worker == "pi-7"
    assert (settings.broker.host, settings.broker.port) == ("broker.example", 8_883)
    assert settings.label_values["site"] == "north"
    assert settings.model == ROLE_DEFAULTS["worker_model"]


def test_the_unit_is_the_one_that_ansible_writes(desk: Path) -> None:
    assert render() == ExitCode.OK
    files = laid(desk / "pi-7")
    unit = files["/etc/systemd/system/edgefleet-worker.service"]
    template = ROOT / "deploy/ansible/roles/worker/templates/edgefleet-worker.service.j2"
    always = re.sub(r"{% if .*?{% endif %}\n", "", template.read_text(), flags=re.DOTALL)
    fixed = [line for line in always.splitlines() if "{" not in line]
    assert [line for line in fixed if line not in unit.splitlines()] == []
    assert "TimeoutStopSec=45\n" in unit
    assert "MemoryMax=900M\n" in unit
    assert "CPUQuota" not in unit
    sandbox = files["/etc/systemd/system/edgefleet-.service.d/10-sandbox.conf"]
    assert "ProtectSystem=strict" in sandbox
    assert "{{" not in "".join(files.values())


def test_defaults_are_those_of_the_roles() -> None:
    for name, value in ROLE_DEFAULTS.items():
        role = name.partition("_")[0]
        path = ROOT / f"deploy/ansible/roles/{role}/defaults/main.yml"
        # What a role does not know, none of its templates asks for.
        assert yaml.safe_load(path.read_text()).get(name, "") == value


def test_older_raspberry_pi_os_gets_the_same_files_by_its_script(desk: Path) -> None:
    assert render() == ExitCode.OK
    script = (desk / "pi-7/firstrun.sh").read_text()
    checked = subprocess.run(
        ["sh", "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    for path, text in laid(desk / "pi-7").items():
        assert f"cat > {path}" in script
        assert text in script
    # The initramfs of Bookworm cuts the script at the first such line, and adds an end of its own.
    cuts = [
        n for n, line in enumerate(script.splitlines()) if re.search(r"rm.*firstrun\.sh$", line)
    ]
    assert cuts == [len(script.splitlines()) - 3]


def test_the_script_lays_the_files_with_their_modes(desk: Path, tmp_path: Path) -> None:
    assert render() == ExitCode.OK
    root = tmp_path / "board"
    script = (desk / "pi-7/firstrun.sh").read_text()
    script = script.replace(" /etc/", f" {root}/etc/").replace("/usr/lib/", f"{root}/usr/lib/")
    script = script.replace(" /boot/", f" {root}/boot/")
    script = script.replace("\nsystemctl enable first-boot", "\ntrue")
    subprocess.run(["sh"], input=script, text=True, capture_output=True, check=True)
    for file in user_data(desk / "pi-7")["write_files"]:
        there = root / file["path"].lstrip("/")
        assert there.read_text().replace(f"{root}/", "/") == file["content"]
        assert f"{stat.S_IMODE(there.stat().st_mode):04o}" == file["permissions"]


def test_the_script_of_the_first_boot_is_shell() -> None:
    script = ROOT / "fleet_cli/image/first-boot.sh"
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(script)], check=False).returncode == 0


def test_wireless_networks_are_joined_without_the_passphrase_on_the_card(desk: Path) -> None:
    (desk / "wifi").write_text("correct horse battery\n")
    (desk / "wifi").chmod(0o600)
    words = ["--wifi", "Hall 'seven'", "--wifi-country", "de", "--wifi-password-file", "wifi"]
    assert render(*words) == ExitCode.OK
    for path in (desk / "pi-7").iterdir():
        assert "correct horse" not in path.read_text()
    (wifi,) = yaml.safe_load((desk / "pi-7/network-config").read_text())["network"][
        "wifis"
    ].values()
    assert wifi["regulatory-domain"] == "DE"
    assert len(wifi["access-points"]["Hall 'seven'"]["password"]) == 64


def test_a_passphrase_becomes_the_standards_key() -> None:
    # Source: IEEE 802.11i, annex H.4.3, the first test vector.
    wifi = wifi_of("IEEE", "password", "US")
    assert wifi.psk == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert wifi.psk not in repr(wifi)


def built_model(desk: Path) -> Path:
    folder = desk / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "tiny", "version": "1.0.0", "files": []}')
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "MODEL_CARD.md").write_text("for people")
    return folder


def test_wheels_and_model_go_with_the_card_and_the_board_knows_their_hashes(desk: Path) -> None:
    archive = desk / f"edgefleet-{__version__}-edge-3.13-aarch64.tar"
    archive.write_bytes(b"wheels")
    words = ["--wheels", str(archive), "--model", str(built_model(desk))]
    assert render(*words, engine="onnx") == ExitCode.OK
    card = desk / "pi-7"
    settings = laid(card)[f"{HERE}/settings"]
    assert f"WHEELS_SHA256={hashlib.sha256(b'wheels').hexdigest()}\n" in settings
    assert "WHEELS_PYTHON=3.13-aarch64\n" in settings
    assert (card / "edgefleet/wheels.tar").read_bytes() == b"wheels"
    packed = card / "edgefleet/model.tar"
    assert f"MODEL_SHA256={hashlib.sha256(packed.read_bytes()).hexdigest()}\n" in settings
    assert "MODEL=tiny-1.0.0\n" in settings
    with tarfile.open(packed) as archived:
        assert archived.getnames() == ["manifest.json", "model.onnx"]
        assert {member.uid for member in archived} == {0}


def test_what_a_board_fetches_is_known_by_its_hash(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://files.example/tiny-1.0.0.tar"
    assert render("--model", url, engine="onnx") == ExitCode.USAGE
    assert "--model-sha256" in capsys.readouterr().err
    assert render("--model", url, "--model-sha256", "ab" * 32, engine="onnx") == ExitCode.OK
    settings = laid(desk / "pi-7")[f"{HERE}/settings"]
    assert f"MODEL_URL={url}\n" in settings
    assert "MODEL=tiny-1.0.0\n" in settings


def test_an_authority_elsewhere_makes_the_token(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["enroll", "worker", "pi-7", "--token", "--out", "handed"]) == ExitCode.OK
    token = (desk / "handed/pi-7/token").read_text().strip()
    shutil.rmtree(desk / "pki")
    capsys.readouterr()
    assert render("--enrolled", "handed/pi-7", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["expires_at_ms"] is None
    assert token_of(desk / "pi-7") == token
    assert render("--enrolled", "handed/pi-7", host="pi-8") == ExitCode.USAGE
    assert "made for pi-8" in capsys.readouterr().err


def test_a_jetson_has_no_script_of_raspberry_pi_os(desk: Path) -> None:
    assert render(board="jetson") == ExitCode.OK
    assert not (desk / "pi-7/firstrun.sh").exists()
    network = yaml.safe_load((desk / "pi-7/network-config").read_text())["network"]
    assert network["ethernets"]["wired"]["match"] == {"name": "e*"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--host", "pi_7"], "letters, digits and hyphens"),
        (["--host", "-"], "letters, digits and hyphens"),
        (["--user", "root"], "not root"),
        (["--broker", "mqtt://broker.example:1883"], "mqtts://"),
        (["--broker", "mqtts://localhost:8883"], "the board itself"),
        (["--ssh-key", "nobody.pub"], "--ssh-key"),
        (["--engine", "onnx"], "--model"),
        (["--model", "nowhere"], "no model"),
        (["--wheels", "nowhere.tar"], "wheelhouse.yml"),
        (["--wifi", "hall"], "--wifi-password-file"),
        (["--label", "=north"], "label"),
        (["--version", "../1"], "no version"),
        (["--python", "python3"], "no path"),
        (["--valid", "soon"], "90min"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_enrolled(
    desk: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert render(*words) == ExitCode.USAGE
    assert why in capsys.readouterr().err
    assert members(capsys) == {}
    assert not (desk / "pi-7").exists()


def test_a_private_key_goes_on_no_card(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    assert render("--ssh-key", "key") == ExitCode.USAGE
    assert "key.pub" in capsys.readouterr().err


def test_a_sealed_model_goes_on_no_card(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = built_model(desk)
    (model / "model.onnx").rename(model / "model.onnx.sealed")
    assert render("--model", str(model), engine="onnx") == ExitCode.USAGE
    assert "worker_model_key" in capsys.readouterr().err


def test_wheels_of_another_version_are_refused(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "edgefleet-9.9.9-edge-3.13-aarch64.tar").write_bytes(b"")
    assert render("--wheels", "edgefleet-9.9.9-edge-3.13-aarch64.tar") == ExitCode.USAGE
    assert "--version 9.9.9" in capsys.readouterr().err


def test_a_card_is_replaced_only_on_request_and_a_board_keeps_what_it_had(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render() == ExitCode.OK
    first = token_of(desk / "pi-7")
    assert render() != ExitCode.OK
    assert token_of(desk / "pi-7") == first
    assert render("--out", "other") != ExitCode.OK
    assert "--again" in capsys.readouterr().err
    assert not (desk / "other").exists()
    assert render("--again") == ExitCode.OK
    assert token_of(desk / "pi-7") != first


def test_a_card_that_cannot_be_written_enrols_nobody(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "file").write_text("in the way")
    assert render("--out", "file/card") == ExitCode.USAGE
    assert members(capsys) == {}
    assert [path.name for path in desk.iterdir() if path.name.startswith(".")] == []
