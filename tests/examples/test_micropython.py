"""The MicroPython example on MicroPython itself, its Unix port: MQTT 3.1.1 over TLS."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.examples.device_site import HOST, DeviceSite

pytestmark = [pytest.mark.examples, pytest.mark.broker]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "micropython"
TOOLS = ROOT / ".venv-examples"
MICROPYTHON = TOOLS / "bin" / "micropython"
DEVICE = "upy"
# The example is a module here; what it would do for ever is done once, or with other limits.
CONNECT = """
import main
fleet = main.Fleet(main.MQTTClient(
    main.mine.DEVICE, main.mine.HOST, main.mine.PORT,
    main.mine.DEVICE, main.mine.PASSWORD, keepalive=60, ssl=main.tls(),
))
fleet.connect()
"""


@pytest.fixture(scope="module")
def folder(site: DeviceSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flash of a board: the example, its settings filled in, the authority's certificate."""
    require(MICROPYTHON.exists(), "what `make examples` installs")
    folder = tmp_path_factory.mktemp("flash")
    shutil.copy(EXAMPLE / "main.py", folder)
    (folder / "ca.der").write_bytes(ssl.PEM_cert_to_DER_cert(site.ca_file.read_text()))
    text = (EXAMPLE / "fleet_settings.example.py").read_text()
    for old, new in {
        '"broker.example"': f'"{HOST}"',
        "PORT = 8884": f"PORT = {site.port}",
        '"hall-3"': f'"{DEVICE}"',
        '\nPASSWORD = ""': f'\nPASSWORD = "{site.passwords[DEVICE]}"',
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "fleet_settings.py").write_text(text)
    return folder


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    path = os.pathsep.join((str(folder), str(TOOLS / "lib-micropython"), ".frozen"))
    return subprocess.Popen(
        [str(MICROPYTHON), *words], cwd=folder, env={**os.environ, "MICROPYPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output(folder: Path, script: str) -> str:
    with start(folder, "-c", CONNECT + script) as process:
        told, _ = process.communicate(timeout=90)
    assert process.returncode == 0, told
    return told


def test_the_program_asks_about_a_reading_and_switches_the_fan(folder: Path) -> None:
    # Printed to a pipe, it comes when the buffer is full, or at once where nothing buffers.
    with start(folder, "main.py") as process:
        assert process.stdout
        try:
            lines = [process.stdout.readline() for _ in range(2)]
        finally:
            process.kill()
    # Without a model the first choice that the question names is the answer: "yes".
    assert lines == ["Is 31.5 C above the limit of 28 C? Answer yes or no. yes\n", "fan on\n"]


def test_a_text_is_answered_in_plain_text(folder: Path) -> None:
    told = output(folder, """print(fleet.ask('Who said "veni, vidi" in Köln?'))""")
    assert told.startswith('Who said "veni, vidi" in Köln? Who')


def test_a_question_longer_than_a_packet_is_refused(folder: Path) -> None:
    told = output(
        folder,
        """
try:
    fleet.ask("x" * 200)
except ValueError as error:
    print(error)
print(fleet.ask("and now?"))
""",
    )
    assert told.startswith("too long to ask\nand now? and now?")


def test_an_answer_longer_than_a_packet_is_asked_for_again_in_half(folder: Path) -> None:
    # 400 bytes do not fit, 200 do.
    told = output(folder, """print(len(fleet.ask("tell me more", max_tokens=100)))""")
    assert 190 <= int(told) <= 200


def test_a_broker_of_another_authority_is_not_trusted(folder: Path) -> None:
    script = """
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.verify_mode = ssl.CERT_REQUIRED
client = main.MQTTClient("x", main.mine.HOST, main.mine.PORT, ssl=context)
try:
    client.connect()
except Exception as error:
    print(type(error).__name__)
"""
    assert output(folder, script) in {"OSError\n", "ValueError\n"}
