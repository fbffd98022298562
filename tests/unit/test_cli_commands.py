"""The command line without a fleet: help, usage, connection, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fleet_cli.__main__ import run
from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_cli.connection import resolve
from fleet_cli.context import DataFolder, FleetContext
from fleet_cli.exits import ExitCode, exit_code_of
from fleet_cli.gateway import has_page
from fleet_cli.root import root
from fleet_client import ConnectError, DeniedError, JobTimeoutError
from fleet_protocol.errors import ConfigError, FleetError, RejectedError
from fleet_protocol.folders import user_data_folder
from fleet_protocol.messages import ID_PATTERN
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import Role


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


@pytest.mark.parametrize("words", list(commands(root)), ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(root, [*words, "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"fleet {' '.join(words)}" in shown.output


def test_the_table_of_commands_says_what_each_command_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(words[0] in shown for words in commands(root))


def test_help_imports_no_command_and_none_of_the_slow_libraries() -> None:
    code = (
        "import sys, fleet_cli.__main__ as m; m.run(['--help']); "
        "slow = ('rich', 'paho', 'aiomqtt', 'asyncio', 'msgspec', 'fleet_cli.commands.up'); "
        "print([n for n in slow if n in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["ask"],
        ["ask", "x", "--escalate", "perhaps"],
        ["ask", "x", "--max-tokens", "0"],
        ["submit"],
        ["submit", "-f", "/no/such/file"],
        ["jobs", "ls", "--limit", "0"],
        ["jobs", "ls", "--status", "lost"],
        ["workers", "drain"],
        ["up", "--workers", "-1"],
        ["completion", "tcsh"],
        ["costs", "--by", "moon"],
        ["costs", "--days", "0"],
        ["cache", "prewarm"],
        ["cache", "prewarm", "-", "--frequent", "3"],
        ["cache", "prewarm", "--frequent", "0"],
        ["ask", "x", "--broker", "http://somewhere"],
        ["ask", "x", "--broker", "mqtt://h:99999"],
        ["ask", "x", "--broker", "mqtt://127.0.0.1:1", "--root", "a/+/b"],
        ["ask", "x", "--broker", "mqtt://127.0.0.1:1", "--password-file", "/no/such/file"],
        ["ask", "x", "--broker", "mqtt://u@127.0.0.1:1", "--password-file", "/no/such/file"],
        ["ask", "x", "--broker", "mqtts://127.0.0.1:1", "--ca-file", "/no/such/file"],
        ["ask", "x", "--username", "u"],
        ["up", "--broker", "mqtt://127.0.0.1:1", "--port", "1883"],
        ["up", "--broker", "mqtt://127.0.0.1:1", "--port-v3", "1883"],
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == ExitCode.USAGE
    told = capsys.readouterr()
    assert told.err
    assert not told.out


def test_no_broker_ends_with_exit_code_3_and_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ask", "x", "--broker", "mqtt://127.0.0.1:1"]) == ExitCode.CANNOT_CONNECT
    assert "fleet up" in capsys.readouterr().err


def test_a_folder_without_a_fleet_ends_with_exit_code_3_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", "x", "--data", str(tmp_path)]) == ExitCode.CANNOT_CONNECT
    assert "fleet up" in capsys.readouterr().err


def test_a_damaged_context_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "context.json").write_text("{")
    assert run(["ask", "x", "--data", str(tmp_path)]) == ExitCode.USAGE
    assert "context.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def guarded(
    mosquitto: BrokerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    """A Mosquitto that knows one user."""
    del mosquitto  # asked for because it knows what to do where none is installed
    options = BrokerOptions(passwords={"ann": "right"})
    folder = tmp_path_factory.mktemp("guarded")
    with BrokerProcess(BrokerKind.MOSQUITTO, folder, options=options) as broker:
        yield broker


@pytest.mark.parametrize("command", [["ask", "x"], ["jobs", "ls"], ["watch", "--count", "1"]])
def test_a_wrong_password_ends_with_exit_code_5(
    guarded: BrokerProcess,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    who = ["--broker", guarded.url, "--username", "ann", "--password-file", str(password)]
    assert run([*command, *who]) == ExitCode.DENIED
    assert "--password-file" in capsys.readouterr().err


def test_silence_of_the_dispatcher_ends_with_exit_code_4(
    guarded: BrokerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFLEET_PASSWORD", "right")
    words = ["ask", "x", "--broker", guarded.url, "--username", "ann", "--timeout", "0.2"]
    assert run(words) == ExitCode.TIMEOUT
    assert "fleet doctor" in capsys.readouterr().err


def test_doctor_says_how_to_get_a_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--data", str(tmp_path)]) == ExitCode.CANNOT_CONNECT
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    by_name = {check["name"]: check for check in report["checks"]}
    assert by_name["python"]["ok"] is True
    assert "fleet up" in by_name["broker"]["fix"]
    assert all(check["fix"] for check in report["checks"] if not check["ok"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    assert "_FLEET_COMPLETE" in capsys.readouterr().out


def test_completion_completes_the_commands() -> None:
    environ = {**os.environ, "_FLEET_COMPLETE": "bash_complete", "COMP_WORDS": "fleet w"}
    found = subprocess.run(
        [sys.executable, "-m", "fleet_cli"],
        env={**environ, "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == ["plain,workers", "plain,watch"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectError("x"), ExitCode.CANNOT_CONNECT),
        (JobTimeoutError("x"), ExitCode.TIMEOUT),
        (DeniedError("x"), ExitCode.DENIED),
        (ConfigError("x"), ExitCode.USAGE),
        (RejectedError("x", code="invalid_field"), ExitCode.USAGE),
        (RejectedError("x", code="not_found"), ExitCode.JOB_FAILED),
        (FleetError("x"), ExitCode.JOB_FAILED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: FleetError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def test_an_option_beats_the_environment() -> None:
    environ = {"EDGEFLEET_BROKER": "mqtt://a:1", "EDGEFLEET_ROOT": "r/1"}
    assert resolve({}, environ).broker.url == "mqtt://a:1"
    assert resolve({}, environ).broker.root == "r/1"
    assert resolve({"broker": "mqtt://b:2"}, environ).broker.url == "mqtt://b:2"


def test_without_a_name_it_is_the_folder_that_a_users_programs_share(tmp_path: Path) -> None:
    for environ in ({"HOME": str(tmp_path)}, {"XDG_DATA_HOME": str(tmp_path / "share")}):
        assert resolve({}, environ).data.path == user_data_folder(environ)
    assert user_data_folder({"HOME": "/h"}) == Path("/h/.local/share/edgefleet")
    assert user_data_folder({"HOME": "/h", "XDG_DATA_HOME": "/s"}) == Path("/s/edgefleet")
    assert resolve({}, {"EDGEFLEET_DATA": "/d", "XDG_DATA_HOME": "/s"}).data.path == Path("/d")


@pytest.mark.parametrize(
    ("settings", "environ", "is_there"),
    [
        ("", {}, True),
        ('keys_file = "k"', {}, False),
        ('keys_file = "k"\npage = {users_file = "u"}', {}, True),
        ("", {"EDGEFLEET_DISPATCHER_GATEWAY__KEYS_FILE": "k"}, False),
        ('keys_file = "k"', {"EDGEFLEET_DISPATCHER_GATEWAY__PAGE__USERS_FILE": "u"}, True),
    ],
)
def test_a_dashboard_is_named_only_where_somebody_can_open_it(
    tmp_path: Path, settings: str, environ: dict[str, str], *, is_there: bool
) -> None:
    config = tmp_path / "dispatcher.toml"
    config.write_text(f"[gateway]\n{settings}\n")
    assert has_page(config, environ) is is_there


def test_a_data_folder_on_the_command_line_beats_a_broker_in_the_environment(
    tmp_path: Path,
) -> None:
    folder = DataFolder(tmp_path)
    folder.write(FleetContext(broker=BrokerSettings(url="mqtt://here:7")))
    connection = resolve({"data": str(tmp_path)}, {"EDGEFLEET_BROKER": "mqtt://a:1"})
    assert connection.broker.url == "mqtt://here:7"


def test_the_context_of_a_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    DataFolder(tmp_path).write(FleetContext(broker=BrokerSettings(url="mqtt://u:secret@h:7")))
    assert (tmp_path / "context.json").stat().st_mode & 0o077 == 0


def test_the_ids_of_the_command_line_can_stand_in_topics() -> None:
    connection = resolve({"broker": "mqtt://h:1"}, {})
    for name in (connection.device, connection.admin.id, connection.client_id):
        assert re.match(ID_PATTERN, name)


def test_device_and_admin_are_the_mqtt_user_where_there_is_one() -> None:
    connection = resolve({"broker": "mqtt://ann:pw@h:1"}, {})
    assert connection.device == connection.admin.id == "ann"
    assert connection.admin.role is Role.ADMIN
    assert connection.client_id != "ann"


def test_a_password_in_the_environment_is_used() -> None:
    environ = {"EDGEFLEET_PASSWORD": "pw", "EDGEFLEET_USERNAME": "ann"}
    settings = resolve({"broker": "mqtt://h:1"}, environ).broker
    assert (settings.user, settings.secret) == ("ann", "pw")
