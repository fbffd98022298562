"""Children that crash are started again; all end when they should."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_cli.context import DataFolder
from fleet_cli.local_fleet import FleetPlan, LocalFleet, free_port
from fleet_cli.supervisor import Child, ChildSpec, RestartPolicy, Supervisor
from fleet_protocol.errors import ConfigError

PATIENCE_S = 20.0
HASTY = RestartPolicy(first_s=0.01, most_s=0.02)


def child(folder: Path, code: str, *, stop_s: float = 10.0) -> Child:
    return Child(
        ChildSpec(
            words=(sys.executable, "-c", code),
            environ=dict(os.environ),
            log=folder / "child.log",
            stop_s=stop_s,
        )
    )


def until(met: Callable[[], bool], *, tick: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        tick()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def supervisor(told: list[str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(told.append, HASTY)
    yield supervisor
    supervisor.stop_all()


def test_pauses_double_up_to_a_limit_and_a_healthy_life_earns_a_fresh_count() -> None:
    policy = RestartPolicy(first_s=0.5, most_s=30.0, healthy_s=60.0)
    assert [policy.pause_s(n) for n in (1, 2, 3, 7, 1_000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert policy.crashes_after(3, lived_s=1.0) == 4
    assert policy.crashes_after(3, lived_s=61.0) == 1


def test_a_child_that_crashes_is_started_again_and_a_line_says_so(
    supervisor: Supervisor, told: list[str], tmp_path: Path
) -> None:
    supervisor.start("w1", child(tmp_path, "import sys; sys.exit('boom')"))
    until(lambda: supervisor.crashes("w1") >= 2, tick=supervisor.tick)
    assert told[0].startswith("w1 ended with exit code 1; starting it again in ")
    assert supervisor.last_words("w1").count("boom") <= 1, "an earlier run's words are not its own"
    until(lambda: supervisor.exit_code("w1") == 1)
    assert supervisor.last_words("w1") == "boom"


def test_a_killed_child_is_started_again(
    supervisor: Supervisor, told: list[str], tmp_path: Path
) -> None:
    service = child(tmp_path, "import time; time.sleep(600)")
    supervisor.start("w1", service)
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: service.pid != first, tick=supervisor.tick)
    assert "SIGKILL" in told[0]


def test_a_child_that_ignores_sigterm_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('ready', flush=True); time.sleep(600)"
    )
    service = child(tmp_path, code, stop_s=0.1)
    supervisor.start("w1", service)
    until(lambda: "ready" in supervisor.last_words("w1"))
    supervisor.stop_all()
    assert service.exit_code() == -signal.SIGKILL


def test_what_was_started_last_is_stopped_first(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "order.log"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(log)!r}, 'a').write(sys.argv[1] + '\\n')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"open({str(log)!r} + sys.argv[1], 'w').close()\n"
        "time.sleep(600)\n"
    )
    for name in ("broker", "dispatcher", "w1"):
        spec = child(tmp_path, code).spec
        words = (*spec.words, name)
        supervisor.start(
            name, Child(ChildSpec(words=words, environ=spec.environ, log=spec.log, stop_s=10.0))
        )
        until(lambda n=name: Path(f"{log}{n}").exists())
    supervisor.stop_all()
    assert log.read_text().split() == ["w1", "dispatcher", "broker"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
def test_a_tethered_program_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from fleet_cli.tether import tethered; "
        "p = subprocess.Popen(tethered([sys.executable, '-c', 'import time; time.sleep(600)'])); "
        "print(p.pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "pid"
    with log.open("w") as out:
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=out)
    try:
        until(lambda: log.read_text().strip() != "")
    finally:
        parent.kill()
        parent.wait()
    orphan = int(log.read_text())
    until(lambda: not is_running(orphan))


def is_running(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_port_that_is_free_is_used_again_and_a_taken_one_is_not() -> None:
    port = free_port()
    assert free_port(port) == port

    with socket.create_server(("127.0.0.1", port)):
        assert free_port(port) != port


def test_a_folder_holds_one_fleet_at_a_time(tmp_path: Path) -> None:

    def fleet() -> LocalFleet:
        folder = DataFolder(tmp_path / "data")
        return LocalFleet(folder, FleetPlan(), tell=lambda _: None, stop=threading.Event())

    with fleet(), pytest.raises(ConfigError, match=str(os.getpid())), fleet():
        pass
    with fleet():
        pass


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        DataFolder(tmp_path / "file" / "data").make()
