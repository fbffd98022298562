"""That labs do not meet, and leave nothing behind, however they end. `make boards`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.board_lab import BoardLab
from tests.deploy.patience import wait_until
from tests.deploy.warden import REPOSITORY, Warden, left_of

pytestmark = [
    pytest.mark.boards,
    pytest.mark.timeout(1_800),
    pytest.mark.usefixtures("boards_can_start"),
]

A_RUN: Final = """
import subprocess, sys, time
from pathlib import Path
from tests.deploy.board_lab import BoardLab
with BoardLab(Path(sys.argv[1])) as lab:
    lab.add("hub").switch_on()
    lab.add("frozen").switch_on()
    lab.boards["frozen"].freeze(frozen=True)
    subprocess.Popen(lab.on_lan("sleep", "1000"))
    print(lab.name, flush=True)
    time.sleep(1000)
"""


def test_two_labs_do_not_meet(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with BoardLab(tmp_path / "one") as one, BoardLab(tmp_path / "two") as two:
        for lab in (one, two):
            lab.add("hub").switch_on()
        assert one.boards["hub"].address == two.boards["hub"].address
        one.boards["hub"].ssh("touch one")
        assert two.boards["hub"].ssh("ls").stdout == ""
        one.boards["hub"].cut_power()
        two.boards["hub"].ssh("true")
        one.boards["hub"].switch_on()
        assert one.boards["hub"].ssh("ls").stdout == "one\n"
    assert left_of(one.name) + left_of(two.name) == []


def start_a_run(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Return a run of tests, with two boards and a program, and the name of its lab."""
    run = subprocess.Popen(
        [sys.executable, "-c", A_RUN, str(folder)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout
    lab = run.stdout.readline().strip()
    assert len(left_of(lab)) > len(("group", "two disks", "", "three networks", "", ""))
    return run, lab


def kill(run: subprocess.Popen[str]) -> None:
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def test_a_run_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    run, lab = start_a_run(tmp_path)
    kill(run)
    wait_until(lambda: not left_of(lab), lambda: left_of(lab))
    wait_until(lambda: not list(tmp_path.glob("*/upper")))


def test_what_a_killed_warden_leaves_the_next_one_takes_away(tmp_path: Path) -> None:
    run, lab = start_a_run(tmp_path)
    os.kill(int(lab.removeprefix("ef")), signal.SIGKILL)
    kill(run)
    assert left_of(lab)
    with Warden():
        assert left_of(lab) == []
    assert not list(tmp_path.glob("*/upper"))
