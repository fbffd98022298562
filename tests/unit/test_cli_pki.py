"""`fleet pki` and `fleet enroll`: what a person types, and what is left on the disk."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fleet_cli.__main__ import run
from fleet_cli.connection import resolve
from fleet_cli.exits import ExitCode
from fleet_pki import certificates as c
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError
from fleet_protocol.roles import LADDER
from fleet_protocol.topics import Role


@pytest.fixture(autouse=True)
def pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFLEET_PKI", str(tmp_path / "pki"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pki"


@pytest.fixture
def _made(pki: Path) -> None:
    assert run(["pki", "init"]) == ExitCode.OK
    assert (pki / "ca.pem").exists()


def members(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert run(["pki", "ls", "--json"]) == ExitCode.OK
    return {one["id"]: one for one in json.loads(capsys.readouterr().out)["members"]}


def test_without_an_authority_the_next_step_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["enroll", "worker", "pi-1"]) == ExitCode.USAGE
    assert "fleet pki init" in capsys.readouterr().err


@pytest.mark.usefixtures("_made")
def test_no_secret_is_printed_and_all_of_them_are_their_owners_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["worker", "w1"], ["worker", "w2", "--token"], ["device", "d1", "--password"]):
        assert run(["enroll", *words]) == ExitCode.OK
        assert run(["enroll", *words, "--again", "--json"]) == ExitCode.OK
    told = "".join(capsys.readouterr())
    secrets = [tmp_path / "w1/key.pem", tmp_path / "w2/token", tmp_path / "d1/password"]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for line in path.read_text().splitlines():
            assert line not in told or line.startswith("-----")


@pytest.mark.usefixtures("_made")
@pytest.mark.parametrize(
    "text",
    [
        "role,id,secret\nworker,w1,token\ndevice,d1,password\nviewer,v1,\n",
        """{"role":"worker","id":"w1","secret":"token"}
{"role":"device","id":"d1","secret":"password"}
{"role":"viewer","id":"v1"}
""",
    ],
)
def test_a_list_is_enrolled_at_once(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list").write_text(text)
    assert run(["enroll", "--list", "list", "--out", "keys"]) == ExitCode.OK
    names = {str(p.relative_to(tmp_path / "keys")) for p in Path("keys").absolute().glob("*/*")}
    assert names == {
        *("w1/token", "w1/ca.pem", "d1/password", "d1/ca.pem"),
        *("v1/key.pem", "v1/cert.pem", "v1/ca.pem", "v1/role"),
    }
    found = members(capsys)
    assert {name: one["secret"] for name, one in found.items()} == {
        "w1": "token", "d1": "password", "v1": "certificate",
    }  # fmt: skip


@pytest.mark.usefixtures("_made")
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("worker,w1,\nworker,w 2,\n", "line 3"),
        ("worker,w1,\nworker,w1,\n", "w1"),
        ("worker,w1,\nviewer,v1,password\n", "passwords are for devices"),
        ("worker,w1,\nworker,taken,\n", "taken"),
    ],
)
def test_a_list_with_a_mistake_enrols_nobody(
    rows: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("keys/taken").mkdir(parents=True)
    Path("list").write_text(f"role,id,secret\n{rows}")
    assert run(["enroll", "--list", "list", "--out", "keys"]) != ExitCode.OK
    assert told in capsys.readouterr().err
    assert members(capsys) == {}
    assert [path.name for path in Path("keys").iterdir()] == ["taken"]


@pytest.mark.usefixtures("_made")
def test_a_board_gets_a_certificate_for_a_key_that_stays_on_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["enroll", "worker", "pi-1", "--token"]) == ExitCode.OK
    key = c.new_key()
    Path("pi-1.csr").write_bytes(c.make_request("pi-1", key))
    words = ["pki", "sign", "pi-1.csr", "--token-file", "pi-1/token", "--out", "cert.pem"]
    assert run(words) == ExitCode.OK
    certificate = c.read_certificate(Path("cert.pem").read_bytes())
    assert c.key_digest(certificate.public_key()) == c.key_digest(key.public_key())  # type: ignore[arg-type]
    Path("pi-1.csr").write_bytes(c.make_request("pi-1", c.new_key()))
    assert run(words) == ExitCode.JOB_FAILED
    assert "used already" in capsys.readouterr().err


@pytest.mark.usefixtures("_made")
def test_a_secret_that_others_can_read_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["enroll", "worker", "pi-1", "--token"]) == ExitCode.OK
    Path("pi-1.csr").write_bytes(c.make_request("pi-1", c.new_key()))
    Path("pi-1/token").chmod(0o644)
    words = ["pki", "sign", "pi-1.csr", "--token-file", "pi-1/token", "--out", "cert.pem"]
    assert run(words) == ExitCode.USAGE
    assert "chmod 600" in capsys.readouterr().err
    assert not Path("cert.pem").exists()


@pytest.mark.usefixtures("_made")
def test_a_revoked_identity_is_listed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["enroll", "worker", "pi-1"]) == ExitCode.OK
    assert run(["pki", "revoke", "pi-1"]) == ExitCode.OK
    assert not members(capsys)["pi-1"]["active"]
    assert run(["pki", "revoke", "pi-9"]) == ExitCode.JOB_FAILED
    assert "not enrolled" in capsys.readouterr().err


@pytest.mark.usefixtures("_made")
@pytest.mark.parametrize("span", ["3", "0h", "h", "1y", "-1d"])
def test_a_span_has_a_number_and_a_unit(span: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["enroll", "worker", "pi-1", "--valid", span]) == ExitCode.USAGE
    assert "72h" in capsys.readouterr().err


@pytest.mark.usefixtures("_made")
def test_the_brokers_folder_is_written_again_with_what_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pki", "broker", "mq"]) == ExitCode.USAGE
    assert "--host" in capsys.readouterr().err
    assert run(["enroll", "device", "d1", "--password"]) == ExitCode.OK
    assert run(["pki", "broker", "mq", "--host", "broker.lan", "--host", "10.0.0.7"]) == ExitCode.OK
    assert "nobody is enrolled as dispatcher" in capsys.readouterr().err
    before = {name: (tmp_path / "mq" / name).read_bytes() for name in ("key.pem", "cert.pem")}
    assert run(["pki", "revoke", "d1"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["pki", "broker", "mq", "--json"]) == ExitCode.OK
    written = json.loads(capsys.readouterr().out)
    assert (written["identities"], written["revoked"]) == (0, 1)
    assert written["hosts"] == ["broker.lan", "10.0.0.7"]
    assert before == {name: (tmp_path / "mq" / name).read_bytes() for name in before}
    # The port for passwords stays: a reload opens and closes none.
    config = (tmp_path / "mq" / "mosquitto.conf").read_text()
    assert config.count("\nlistener ") == 2
    assert "user d1" not in (tmp_path / "mq" / "acl").read_text()
    assert (tmp_path / "mq" / "passwords").read_text() == ""
    for path in (tmp_path / "mq").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.usefixtures("_made")
def test_a_broker_that_says_whom_it_turns_away_goes_on_saying_so(tmp_path: Path) -> None:
    assert run(["pki", "broker", "mq", "--host", "broker.lan"]) == ExitCode.OK
    assert "log_type debug" not in Path("mq/mosquitto.conf").read_text()
    for more in (["--log", "broker.log"], []):
        assert run(["pki", "broker", "mq", *more]) == ExitCode.OK
        lines = Path("mq/mosquitto.conf").read_text().splitlines()
        assert f"log_dest file {tmp_path / 'broker.log'}" in lines
        assert "log_dest stderr" not in lines, "a line for every packet is for memory alone"
        assert {"log_type debug", "log_type subscribe", "log_type notice"} <= set(lines)


@pytest.mark.usefixtures("_made")
def test_a_key_is_made_once_and_never_over_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pki", "key", "models.key"]) == ExitCode.OK
    words = Path("models.key").read_text()
    assert (len(words.strip()), stat.S_IMODE(Path("models.key").stat().st_mode)) == (64, 0o600)
    assert run(["pki", "key", "models.key"]) == ExitCode.USAGE
    assert Path("models.key").read_text() == words
    assert words.strip() not in capsys.readouterr().err


@pytest.mark.usefixtures("_made")
def test_no_other_process_is_told_to_reload(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pki", "broker", "mq", "--host", "broker.lan"]) == ExitCode.OK
    # A file that was left behind, and whose number belongs to somebody else by now.
    Path("mq/mosquitto.pid").write_text(f"{os.getpid()}\n")
    assert run(["pki", "broker", "mq", "--reload"]) == ExitCode.JOB_FAILED
    assert "mosquitto -c" in capsys.readouterr().err


@pytest.mark.usefixtures("_made")
@pytest.mark.parametrize("role", LADDER)
def test_the_folder_of_who_looks_after_the_fleet_says_as_what(role: Role) -> None:
    assert run(["enroll", role.value, "ann"]) == ExitCode.OK
    connection = resolve({"broker": "mqtts://h", "identity": "ann"}, {})
    assert connection.admin == Identity(role=role, id="ann")
    # As a folder that an earlier release wrote.
    Path("ann/role").unlink()
    assert resolve({"broker": "mqtts://h", "identity": "ann"}, {}).role is Role.ADMIN
    Path("ann/role").write_text("king\n")
    with pytest.raises(ConfigError, match="names no role"):
        resolve({"broker": "mqtts://h", "identity": "ann"}, {})


@pytest.mark.usefixtures("_made")
def test_an_identity_is_a_folder_that_enrolment_wrote(tmp_path: Path) -> None:
    assert run(["enroll", "admin", "ann"]) == ExitCode.OK
    assert run(["enroll", "device", "door", "--password"]) == ExitCode.OK
    ann = resolve({"broker": "mqtts://h", "identity": "ann"}, {}).broker
    assert ann.user == "ann"
    assert ann.tls
    assert ann.tls.cert_file == str(tmp_path / "ann" / "cert.pem")
    door = resolve({"broker": "mqtts://h", "identity": str(tmp_path / "door")}, {}).broker
    assert (door.user, door.password_file) == ("door", str(tmp_path / "door" / "password"))
    assert door.tls
    assert door.tls.cert_file is None
    with pytest.raises(ConfigError, match="contradict"):
        resolve({"broker": "mqtts://h", "identity": "ann", "username": "eve"}, {})
    with pytest.raises(ConfigError, match="neither"):
        resolve({"broker": "mqtts://h", "identity": "pki"}, {})
