"""The `edge-worker` command: what it prints, and how it ends."""

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

from edge_worker.adapters.measurements import MeasurementFile
from edge_worker.cli.exits import ExitCode, exit_code_of
from edge_worker.ports import ReloadError
from fleet_protocol import __version__
from fleet_protocol.errors import (
    BusClosedError,
    ConfigError,
    FleetError,
    RejectedError,
    RetryableError,
)
from tests.contract import tiny_model

WORKER = (sys.executable, "-m", "edge_worker")
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def _no_data_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WORKER, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@contextmanager
def mute_listener() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_version_is_the_projects() -> None:
    assert run("--version").stdout.split()[-1] == __version__


@pytest.mark.parametrize("words", [(), ("run",), ("check",), ("selftest",), ("route",)])
def test_every_command_has_help(words: tuple[str, ...]) -> None:
    outcome = run(*words, "--help")
    assert outcome.returncode == 0
    assert "Usage: " in outcome.stdout


def test_help_loads_neither_the_model_runtime_nor_the_program() -> None:
    code = (
        "import sys; from edge_worker.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'onnxruntime', 'numpy', 'psutil', 'sqlite_utils', 'edge_worker.app'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.stderr == ""
    assert outcome.returncode == 0


def test_an_echo_worker_never_loads_the_model_runtime() -> None:
    code = (
        "import sys; from edge_worker.__main__ import main\n"
        "try: main(['selftest', '--engine', 'echo'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(', '.join({'onnxruntime', 'tokenizers'} & set(sys.modules)) or None)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.stderr == ""
    assert outcome.returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "--slots", "0"), "--slots"),
        (("run", "--id", "a/b"), "id"),
        (("run", "--broker", "http://x"), "broker"),
        (("run", "--config", "/no/such.toml"), "/no/such.toml"),
        (("fly",), "fly"),
    ],
)
def test_a_wrong_word_ends_with_usage(words: tuple[str, ...], says: str) -> None:
    outcome = run(*words)
    assert outcome.returncode == 2
    assert says in outcome.stderr
    assert outcome.stdout == ""


def test_selftest_prints_one_json_object() -> None:
    outcome = run("selftest", "--engine", "echo", "--json")
    result = json.loads(outcome.stdout)
    assert outcome.returncode == 0
    assert result["ok"] is True
    assert result["model"]["name"] == "echo"
    assert result["decode_tok_s"] > 0


def test_an_unknown_model_says_how_to_get_it() -> None:
    outcome = run("selftest", "--model", "no-such-model")
    assert outcome.returncode == 2
    assert "next: " in outcome.stderr
    assert "python -m models build" in outcome.stderr


def test_check_finds_what_is_wrong_and_says_what_to_do(tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    outcome = run("check", "--engine", "echo", "--broker", url, "--data", str(tmp_path), "--json")
    result = json.loads(outcome.stdout)
    found = {check["name"]: check["ok"] for check in result["checks"]}
    assert found == {
        "settings": True,
        "model": True,
        "spool": True,
        "broker": False,
        "board": True,
    }
    assert outcome.returncode == 3


def test_a_broken_model_file_is_named_by_check(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "manifest.json").write_text("{}")
    outcome = run("check", "--model", str(model), "--data", str(tmp_path), "--json")
    broken = {check["name"]: check for check in json.loads(outcome.stdout)["checks"]}["model"]
    assert (broken["ok"], broken["code"]) == (False, "model_damaged")
    assert outcome.returncode != 0


def test_a_data_folder_in_use_stops_the_second_worker(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    outcome = run("run", "--engine", "echo", "--data", str(blocker / "data"))
    assert outcome.returncode == 2
    assert "--data" in outcome.stderr


def test_ctrl_c_before_the_broker_answers_ends_the_worker(tmp_path: Path) -> None:
    with mute_listener() as url:
        words = ("run", "--engine", "echo", "--broker", url, "--data", str(tmp_path))
        with subprocess.Popen([*WORKER, *words], stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                while "setup.chosen" not in process.stderr.readline():
                    pass
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE_S) == 130
            finally:
                process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_worker_that_still_measures_ends_at_once(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """It waits for the one that measures, which we play, and would not reach a broker."""
    model = tiny_model.build_artefact(tmp_path / "model").folder
    words = ("run", "--model", str(model), "--data", str(tmp_path), "--broker", "mqtt://127.0.0.1")
    with (
        MeasurementFile(tmp_path / "benchmark.json").alone(pytest.fail),
        subprocess.Popen(
            # As a shell starts what is to run in the background: deaf to Ctrl-C.
            ["sh", "-c", 'trap "" INT; exec "$0" "$@"', *WORKER, *words],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stderr is not None
            while "waiting" not in process.stderr.readline():
                pass
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == code
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RetryableError("x", code="broker_unreachable"), ExitCode.CANNOT_CONNECT),
        (RejectedError("x", code="not_authorized"), ExitCode.DENIED),
        (BusClosedError("x", code="not_authorized"), ExitCode.DENIED),
        (BusClosedError("x", code="session_taken_over"), ExitCode.TAKEN_OVER),
        (ReloadError(), ExitCode.RELOAD),
        (ConfigError("x"), ExitCode.USAGE),
        (RetryableError("x", code="spool_locked"), ExitCode.FAILED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: FleetError, code: ExitCode) -> None:
    assert exit_code_of(error) is code
