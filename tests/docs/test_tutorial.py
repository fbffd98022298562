"""The tutorial, typed as it stands: the desk and three boards are folders of this machine.

Left out is what installs packages (`not tried`): they are installed. `scp` copies between folders.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from fleet_cli.broker import find_mosquitto
from fleet_cli.local_fleet import free_port
from fleet_cli.tether import tethered
from tests.conftest import require

PAGE: Final = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK: Final = re.compile(r"<!-- ([^>]+) -->\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
BOARDS: Final = ("pi-1", "pi-2", "pi-3")
PATIENCE_S: Final = 240.0
SCP: Final = """#!/bin/sh
[ "$1" = -rq ] || exit 2
to=${3#pi@}; cp -r "$2" "$BOARDS/${to%%.local:*}/${to#*:}"
"""

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.timeout(600)]


class Step(NamedTuple):
    """A block of the page: where it is typed, and into which file; empty: it is a command."""

    where: str
    stays: bool
    file: str
    text: str


def steps() -> Iterator[Step]:
    for mark, text in BLOCK.findall(PAGE.read_text()):
        place, _, file = mark.partition(": ")
        where, _, stays = place.partition(", ")
        if where != "not tried":
            yield Step(where, stays == "stays", file, text)


class Desk:
    """Types what the page says, and ends at the end what stays."""

    def __init__(self, folder: Path) -> None:
        self.said: dict[str, str] = {}
        self._folder = folder
        self._port = free_port()
        self._exports: list[str] = []
        self._staying: list[subprocess.Popen[bytes]] = []
        for name in ("desk", "bin", *BOARDS):
            (folder / name).mkdir()
        (folder / "bin" / "scp").write_text(SCP)
        (folder / "bin" / "scp").chmod(0o755)

    def take(self, step: Step) -> None:
        """Do a step, on the desk or on every board."""
        for place in BOARDS if step.where == "board" else ("desk",):
            text = step.text.replace("mqtts://desk.local:8883", f"mqtts://localhost:{self._port}")
            if step.file:
                (self._folder / place / step.file).write_text(text)
                continue
            for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
                self._type(place, line, stays=step.stays)

    def end(self) -> None:
        """End what stays, the last first."""
        for process in reversed(self._staying):
            process.kill()
            process.wait()
            assert process.stdin
            process.stdin.close()

    def _type(self, place: str, line: str, *, stays: bool) -> None:
        if line.startswith("export "):
            self._exports.append(line)
            return
        if line.startswith("fleet pki broker"):
            line += f" --host localhost --address 127.0.0.1 --port {self._port}"
        words = ["bash", "-c", "; ".join([*self._exports, f"exec {line}" if stays else line])]
        if stays:
            self._stay(place, words)
            return
        outcome = subprocess.run(
            words,
            cwd=self._folder / place,
            env=self._environ(place),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert outcome.returncode == 0, f"{line}\n{outcome.stdout}{outcome.stderr}{self._logs()}"
        self.said[line] = outcome.stdout

    def _stay(self, place: str, words: list[str]) -> None:
        log = self._folder / f"{place}-{len(self._staying)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                tethered(words),
                cwd=self._folder / place,
                env=self._environ(place),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
            )
        self._staying.append(process)

    def _environ(self, place: str) -> dict[str, str]:
        folder = self._folder
        path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        mosquitto = find_mosquitto()
        assert mosquitto
        path.append(str(Path(mosquitto).parent))
        return {
            **os.environ,
            "PATH": os.pathsep.join(path),
            "USER": os.environ.get("USER", "root"),
            "BOARDS": str(folder),
            # One machine is not three: they share its name, and measure it once.
            "EDGEFLEET_WORKER_ID": place,
            "EDGEFLEET_WORKER_DATA": str(folder / place / "data"),
            "EDGEFLEET_WORKER_MEASUREMENTS": str(folder / "measured.json"),
            "EDGEFLEET_WORKER_THREADS": "1",
        }

    def _logs(self) -> str:
        return "".join(log.read_text()[-2_000:] for log in sorted(self._folder.glob("*.log")))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    require(find_mosquitto() is not None, "mosquitto")
    desk = Desk(tmp_path)
    yield desk
    desk.end()


def test_whoever_types_the_tutorial_gets_answers_from_three_boards(desk: Desk) -> None:
    for step in steps():
        if "fleet workers ls" in step.text:
            listed = until_all_are_there(desk, step)
            assert all(board in listed for board in BOARDS)
        desk.take(step)
    answer = next(said for line, said in desk.said.items() if "--json" in line)
    assert '"answered_by":"edge"' in answer.replace(" ", "")
    results = next(said for line, said in desk.said.items() if "--jsonl" in line)
    lamps = [json.loads(line)["text"] for line in results.splitlines()]
    assert sorted(lamps) == sorted(
        f'{{"device": "lamp {n}", "action": "set", "value": 40}}' for n in range(1, 61)
    )


def until_all_are_there(desk: Desk, step: Step) -> str:
    """Look at the list of workers until three are online, as a person would."""
    lines = [line for line in step.text.splitlines() if shlex.split(line)[1] in {"export", "fleet"}]
    looked = "\n".join(line for line in lines if "ask" not in line)
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        desk.take(step._replace(text=looked))
        said = next(said for line, said in desk.said.items() if "workers ls" in line)
        if said.count("online") == len(BOARDS):
            return said
        assert time.monotonic() < deadline_s, said


def test_the_tutorial_says_where_each_of_its_blocks_is_typed() -> None:
    text = PAGE.read_text()
    assert len(BLOCK.findall(text)) == text.count("```") // 2
    assert {step.where for step in steps()} == {"desk", "board"}
