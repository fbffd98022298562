"""The dispatcher's commands: what they print, how they end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_dispatcher.cli.exits import Exit, exit_of
from cloud_dispatcher.cli.main import main
from cloud_dispatcher.ports import StoreUnavailableError
from fleet_cli.broker import BrokerProcess
from fleet_protocol import __version__, codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import Delivery, Session
from fleet_protocol.errors import (
    BusClosedError,
    ConfigError,
    FleetError,
    RejectedError,
    RetryableError,
)
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings


def call(*words: str | Path) -> Result:
    clean = {"EDGEFLEET_DATA": None, "DEEPSEEK_API_KEY": None}
    return CliRunner().invoke(main, [str(word) for word in words], env=clean)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL where nobody listens, held so that nobody begins to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"mqtt://127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("words", [[], ["run"], ["check"], ["simulate-cloud"]])
def test_every_command_explains_itself(words: list[str]) -> None:
    said = call(*words, "--help")
    assert said.exit_code == 0
    assert "Usage:" in said.output


def test_the_version_is_the_projects() -> None:
    assert __version__ in call("--version").output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), Exit.USAGE),
        (RetryableError("x", code="broker_unreachable"), Exit.CANNOT_CONNECT),
        (RejectedError("x", code="not_authorized"), Exit.DENIED),
        (BusClosedError("x", code="session_taken_over"), Exit.TAKEN_OVER),
        (StoreUnavailableError("x"), Exit.FAILED),
    ],
)
def test_each_family_of_errors_has_its_exit_code(error: FleetError, code: Exit) -> None:
    assert exit_of(error) is code


def test_a_bad_setting_ends_with_2_and_the_next_step(tmp_path: Path) -> None:
    config = tmp_path / "d.toml"
    config.write_text("engine = 3")
    for command in ("check", "run"):
        said = call(command, "--config", config)
        assert said.exit_code == Exit.USAGE
        assert "d.toml" in said.stderr
        assert "next: " in said.stderr
        assert said.stdout == ""


def test_a_broker_that_is_not_there_ends_with_3(tmp_path: Path, nowhere: str) -> None:
    said = call("check", "--broker", nowhere, "--data", tmp_path, "--json")
    assert said.exit_code == Exit.CANNOT_CONNECT
    report = json.loads(said.stdout)
    rows = {row["name"]: row for row in report["checks"]}
    assert not report["ok"]
    assert rows["broker"]["code"] == "broker_unreachable"
    assert rows["broker"]["hint"]
    assert rows["store"]["ok"]
    assert not list(tmp_path.iterdir()), "a check makes nothing"


def test_a_store_that_cannot_be_had_ends_with_1(tmp_path: Path, nowhere: str) -> None:
    (tmp_path / "file").touch()
    said = call("run", "--broker", nowhere, "--data", tmp_path / "file" / "below")
    assert said.exit_code == Exit.FAILED
    assert "store_unavailable" in said.stderr


@pytest.mark.broker
def test_a_check_of_a_sound_setting_says_so(tmp_path: Path, mosquitto: BrokerProcess) -> None:
    said = call("check", "--broker", mosquitto.url, "--data", tmp_path)
    assert said.exit_code == 0, said.output
    assert "DEEPSEEK_API_KEY is not set" in said.stdout
    assert "FAILED" not in said.stdout


def test_a_dispatcher_without_a_broker_ends_at_once_when_told(tmp_path: Path, nowhere: str) -> None:
    with running(nowhere, tmp_path) as program:
        program.send_signal(signal.SIGTERM)
        _out, log = program.communicate(timeout=5)  # It would try for half a minute.
    assert program.returncode == 0, log
    assert b"Traceback" not in log


def test_a_second_dispatcher_on_the_same_store_is_told_who_has_it(
    tmp_path: Path, nowhere: str
) -> None:
    with running(nowhere, tmp_path) as program:
        said = call("run", "--broker", nowhere, "--data", tmp_path)
        assert said.exit_code == Exit.FAILED
        assert "store_in_use" in said.stderr
        assert f"process {program.pid}" in said.stderr
        program.kill()
        program.wait()
        with running(nowhere, tmp_path):
            """The lock of one that was killed is nobody's."""


@contextmanager
def running(broker: str, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a dispatcher that has its store and looks for its broker."""
    program = subprocess.Popen(
        [sys.executable, "-m", "cloud_dispatcher", "run", "--broker", broker, "--data", data],
        env={"PATH": ""},
        stderr=subprocess.PIPE,
    )
    try:
        assert program.stderr is not None
        while b"link.retry" not in (line := program.stderr.readline()):
            assert line, "it ended"
        yield program
    finally:
        program.kill()
        program.wait()
        if program.stderr is not None:
            program.stderr.close()


@pytest.mark.broker
async def test_sigterm_ends_it_cleanly_and_everybody_knows(
    tmp_path: Path, mosquitto: BrokerProcess
) -> None:
    names = topics.Topics("cli/dispatcher")
    session = Session(client_id="cli-viewer", subscriptions=(names.filter(topics.DISPATCHER),))
    words = ["--broker", mosquitto.url, "--data", tmp_path]
    program = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-m", "cloud_dispatcher", "run", *words],
        env={"EDGEFLEET_DISPATCHER_BROKER__ROOT": names.root, "PATH": ""},
        stderr=subprocess.PIPE,
    )
    try:
        async with MqttBus(BrokerSettings(url=mosquitto.url), session) as bus:
            assert await next_status(bus) == "online"
            program.send_signal(signal.SIGTERM)
            assert await next_status(bus) == "offline"
        _out, log = program.communicate(timeout=20)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 0, log
    assert b"Traceback" not in log
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert "dispatcher.recovered" in events
    assert (tmp_path / "dispatcher.db").stat().st_mode & 0o077 == 0


async def next_status(bus: MqttBus) -> str:
    while True:
        for event in await bus.receive():
            if isinstance(event, Delivery):
                return codec.decode_as(m.DispatcherPresence, event.payload).status.value
