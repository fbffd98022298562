"""The Arduino sketch, compiled for this machine: real MQTT 3.1.1 over TLS, 256 bytes a packet."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import require
from tests.examples.device_site import HOST, DeviceSite

pytestmark = [pytest.mark.examples, pytest.mark.broker]

SKETCH = Path(__file__).parents[2] / "examples" / "esp32"
MACHINE = Path(__file__).parent / "arduino_host"
DEVICE = "esp32"
WARM, COOL = "31.5", "21.5"


def secrets_of(site: DeviceSite) -> str:
    """Return the example's `secrets.h`, filled in: every name that it has is one that is used."""
    text = (SKETCH / "secrets.example.h").read_text()
    certificate = "the lines of ca.pem"
    pem = "\n".join(site.ca_file.read_text().splitlines()[1:-1])
    for old, new in {
        '"broker.example"': f'"{HOST}"',
        "FLEET_PORT 8884": f"FLEET_PORT {site.port}",
        '"hall-3"': f'"{DEVICE}"',
        'FLEET_PASSWORD ""': f'FLEET_PASSWORD "{site.passwords[DEVICE]}"',
        certificate: pem,
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Compiled:
    """Builds the sketch for this machine, with other numbers for its `#define`s."""

    def __init__(self, folder: Path, secrets: str) -> None:
        self._folder = folder
        (folder / "secrets.h").write_text(secrets)

    def build(self, name: str, **defines: str) -> Path:
        program = self._folder / name
        command = [
            *("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"),
            *(f"-D{key}={value}" for key, value in defines.items()),
            *(f"-I{MACHINE}", f"-I{self._folder}", "-include", "Arduino.h", "-x", "c++"),
            *(str(SKETCH / "esp32.ino"), str(MACHINE / "host.cpp"), "-o", str(program)),
            "-lmosquitto",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return program


class Board:
    """A board that runs the sketch: its serial line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def type(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def says(self, wanted: str) -> list[str]:
        """Wait for a line that begins so; return it and those before it."""
        lines = [""]
        while not lines[-1].startswith(wanted):
            lines.append(self._lines.get(timeout=60))
        return lines[1:]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))


@contextlib.contextmanager
def running(program: Path, environ: Mapping[str, str]) -> Iterator[Board]:
    with subprocess.Popen(
        [str(program)], env={**os.environ, **environ}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        board = Board(process)
        try:
            yield board
        finally:
            board.end()


@pytest.fixture(scope="module")
def compiled(site: DeviceSite, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    require(shutil.which("g++") is not None, "g++")
    require(Path("/usr/include/mosquitto.h").exists(), "libmosquitto-dev")
    return Compiled(tmp_path_factory.mktemp("sketch"), secrets_of(site))


@pytest.fixture(scope="module")
def sketch(compiled: Compiled) -> Path:
    return compiled.build("sketch")


def test_a_reading_is_asked_about_and_the_fan_runs(sketch: Path) -> None:
    with running(sketch, {"FLEET_HOST_TEMPERATURE_C": WARM}) as board:
        said = board.says("pin 2")
    # Without a model the first choice that the question names is the answer: "yes".
    assert said == [
        "Connected.",
        "> Is 31.5 C above the limit of 28.0 C? Answer yes or no.",
        "yes",
        "pin 2 HIGH",
    ]


def test_what_is_typed_is_asked_with_its_quotes(sketch: Path) -> None:
    with running(sketch, {}) as board:
        board.says("pin 2")
        board.type(r'Who said "veni, vidi" in C:\rome?')
        assert board.says("> ")[-1] == r'> Who said "veni, vidi" in C:\rome?'
        assert board.says("Who said")[-1].startswith(r'Who said "veni, vidi" in C:\rome? Who')


def test_a_question_longer_than_a_packet_is_refused_and_the_next_one_answered(
    sketch: Path,
) -> None:
    with running(sketch, {}) as board:
        board.says("pin 2")
        # 159 characters are kept of it; each quote takes two bytes.
        board.type('"' * 200)
        assert board.says("Too long to ask.")
        board.type("and now?")
        assert board.says("and now? and now?")


def test_an_answer_longer_than_a_packet_is_asked_for_again_in_half(compiled: Compiled) -> None:
    limits = {"FLEET_MAX_TOKENS": "100", "FLEET_DEADLINE_MS": "4000UL", "FLEET_GRACE_MS": "1000UL"}
    program = compiled.build("impatient", **limits)
    with running(program, {}) as board:
        board.says("pin 2")
        board.type("tell me more")
        said = board.says("tell me more")
    # 400 bytes do not fit, 200 do.
    assert [line.split(" of ")[0] for line in said[:-1]] == [
        "> tell me more",
        "dropped a packet",
        "Silence: asking for half as much.",
    ]
    assert 190 <= len(said[-1]) <= 200


def test_without_password_and_tls_it_speaks_to_a_broker_that_asks_for_none(
    compiled: Compiled, site: DeviceSite, tmp_path: Path
) -> None:
    _ = compiled
    open_only = secrets_of(site).split("// What `fleet enroll")[0]
    program = Compiled(tmp_path, open_only).build("open")
    with running(program, {}) as board:
        # This broker does ask: TLS is what it speaks.
        assert board.says("No connection, state -")
