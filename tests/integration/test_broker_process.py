"""The brokers we start ourselves: on loopback, on the port asked for, never longer than we live."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess, choose_broker
from fleet_protocol.errors import ConfigError, RetryableError
from tests.conftest import require

PATIENCE_S = 15.0


@pytest.fixture(params=list(BrokerKind))
def kind(request: pytest.FixtureRequest) -> BrokerKind:
    found = BrokerKind(request.param)
    require(found.is_installed, f"the {found} broker")
    return found


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def test_a_broker_answers_as_soon_as_it_is_started_and_no_longer_once_stopped(
    tmp_path: Path, kind: BrokerKind
) -> None:
    with BrokerProcess(kind, tmp_path) as broker:
        assert broker.pid is not None
        assert answers(broker.port)
        assert answers(broker.port_v3)
    assert broker.pid is None
    assert not answers(broker.port)


def test_a_broker_is_reached_from_this_machine_only(tmp_path: Path, kind: BrokerKind) -> None:
    with BrokerProcess(kind, tmp_path) as broker:
        # 127.0.0.2 is this machine too, but not the address that was asked for.
        assert not answers(broker.port, "127.0.0.2")


def test_a_broker_that_was_killed_starts_again_on_the_same_ports(
    tmp_path: Path, kind: BrokerKind
) -> None:
    with BrokerProcess(kind, tmp_path) as broker:
        url, pid = broker.url, broker.pid
        broker.kill()
        assert broker.exit_code() is not None
        broker.start()
        assert broker.url == url
        assert broker.pid != pid
        assert answers(broker.port)


def test_a_port_in_use_is_told_with_its_number(tmp_path: Path, kind: BrokerKind) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        broker = BrokerProcess(kind, tmp_path, port=port)
        with pytest.raises(ConfigError, match=str(port)) as caught:
            broker.start()
    assert caught.value.code == "port_in_use"
    assert caught.value.hint
    assert broker.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_broker_does_not_outlive_a_parent_that_was_killed(
    tmp_path: Path, kind: BrokerKind
) -> None:
    program = (
        "import sys, pathlib; from fleet_cli.broker import BrokerKind, BrokerProcess\n"
        "broker = BrokerProcess(BrokerKind(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "broker.start(); print(broker.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, kind, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
    finally:
        parent.kill()
        parent.communicate()
    deadline_s = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < deadline_s, "the broker lives on"
        time.sleep(0.01)


def test_an_embedded_broker_that_panics_ends_instead_of_turning_everybody_away() -> None:
    program = (
        "import os, threading; from fleet_cli.embedded_broker import _end_with_panic as end\n"
        "words, ours = os.pipe()\n"
        "watcher = threading.Thread(target=end, args=(words, 2)); watcher.start()\n"
        "os.write(ours, b'a warning')\n"
        "os.write(ours, b\"thread 'v5' panicked at broker.rs:544\"); watcher.join()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 70
    assert b"a warning" in done.stderr
    assert b"panicked" in done.stderr


def test_a_broker_that_cannot_start_shows_its_own_words(tmp_path: Path) -> None:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    options = BrokerOptions(cert_file=tmp_path / "none.pem", key_file=tmp_path / "none.key")
    broker = BrokerProcess(BrokerKind.MOSQUITTO, tmp_path, options=options)
    with pytest.raises(RetryableError, match=r"none\.pem") as caught:
        broker.start()
    assert caught.value.code == "broker_failed"
    assert str(broker.log_file) in caught.value.hint
    assert broker.pid is None


@pytest.mark.parametrize(
    "options", [BrokerOptions(persistent=True), BrokerOptions(passwords={"a": "b"})]
)
def test_the_embedded_broker_says_what_it_cannot_do(tmp_path: Path, options: BrokerOptions) -> None:
    require(BrokerKind.EMBEDDED.is_installed, "the embedded broker")
    broker = BrokerProcess(BrokerKind.EMBEDDED, tmp_path, options=options)
    with pytest.raises(ConfigError, match="no persistence") as caught:
        broker.start()
    assert "Mosquitto" in caught.value.hint


def test_secrets_in_the_folder_are_for_us_alone_and_hashed(tmp_path: Path) -> None:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    options = BrokerOptions(passwords={"me": "visible?"})
    with BrokerProcess(BrokerKind.MOSQUITTO, tmp_path, options=options):
        file = tmp_path / "passwords"
        assert "visible?" not in file.read_text(encoding="utf-8")
        assert file.stat().st_mode & 0o077 == 0


def test_some_broker_is_chosen_or_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_broker().is_installed
    monkeypatch.setattr("fleet_cli.broker._MORE_FOLDERS", ())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setitem(os.environ, "PATH", "/nowhere")
    with pytest.raises(ConfigError) as caught:
        choose_broker()
    assert caught.value.code == "no_broker"
    assert "mosquitto" in caught.value.hint
