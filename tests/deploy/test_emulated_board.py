"""A board with the boards' own kind of processor, emulated: `make boards-arm64`.

The hub is native. `emulation` says what differs from a real board; besides, the emulator knows no
filters of system calls: the worker runs without `SystemCallFilter=` and its like.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.deploy import emulation
from tests.deploy.board_lab import BoardLab
from tests.deploy.field_site import PYTHONS, Site, settings_for
from tests.deploy.releases import Target, fill_wheelhouse

pytestmark = [pytest.mark.boards_arm64, pytest.mark.timeout(5_400)]

BOARD = "pi-arm"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, boards_can_start: None) -> Iterator[Site]:  # noqa: ARG001 - looks first
    why = emulation.obstacle()
    assert why is None, why
    folder = tmp_path_factory.mktemp("boards")
    wheelhouse = folder / "wheelhouse"
    python = PYTHONS["bookworm"]
    fill_wheelhouse(wheelhouse, Target.hub(python), Target.board(python, machine="aarch64"))
    settings = settings_for(wheelhouse) | {
        "verify_patience_s": 2_400,
        "verify_timeout_s": 600,
        "worker_settings": {"broker": {"tls": {"key_file": emulation.WORKER_KEY}}},
    }
    with emulation.emulated_arm64(), BoardLab(folder) as lab:
        lab.add("hub")
        emulation.adapt(lab.add(BOARD, architecture=emulation.ARM64).root)
        for board in lab.boards.values():
            board.switch_on()
        yield Site(lab, settings)


def test_a_board_of_another_kind_is_flashed_and_answers(site: Site) -> None:
    site.operator.must_play("site", "--tags", "cloud")
    board = site.boards[BOARD]
    assert board.ssh("uname -m").stdout.strip() == "aarch64"
    begun_s = time.monotonic()
    site.operator.must_play("flash")
    flashed_s = time.monotonic()
    result = site.ask(site.enrol("device", "door"), "What is the capital of France?")
    answered_s = time.monotonic()
    assert (result["status"], result["answered_by"]) == ("ok", "edge")
    assert result["worker"] == BOARD
    assert "France" in result["text"] or "Paris" in result["text"]
    print(  # noqa: T201 - what this is run for
        f"\nflashed in {flashed_s - begun_s:.0f} s, answered in {answered_s - flashed_s:.0f} s"
    )
