"""The Python device with its sensor and its fan: with any worker, and with the default model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.examples.device_site import DeviceSite
from tests.integration.fleet import fleet

pytestmark = pytest.mark.broker

SCRIPT = Path(__file__).parents[2] / "examples" / "python" / "hall_fan.py"
DEVICE = "hall-3"

Hall = Callable[..., "subprocess.CompletedProcess[str]"]


def hall(folder: Path, *connection: str) -> Hall:
    """Return a run of the device at so many degrees, with further words of its command line."""

    def run(temperature_c: float, *words: str) -> subprocess.CompletedProcess[str]:
        (folder / "temp").write_text(f"{temperature_c * 1_000:.0f}\n")
        files = ("--sensor", str(folder / "temp"), "--fan", str(folder / "fan"))
        return subprocess.run(
            [sys.executable, str(SCRIPT), "--device", DEVICE, *connection, *files, *words],
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip

    return run


@pytest.fixture
def secured(site: DeviceSite, tmp_path: Path) -> Hall:
    (tmp_path / "password").write_text(site.passwords[DEVICE] + "\n")
    settings = site.settings(DEVICE)
    secret = ("--password-file", str(tmp_path / "password"))
    return hall(tmp_path, "--broker", settings.url, "--ca-file", str(site.ca_file), *secret)


def test_a_reading_is_asked_about_and_the_answer_is_acted_on(secured: Hall, tmp_path: Path) -> None:
    # Without a model the first choice that the question names is the answer: "yes".
    done = secured(31.5, "--count", "1")
    assert "31.5 C" in done.stdout
    assert "answer: yes (edge" in done.stdout
    assert (tmp_path / "fan").read_text() == "1\n"


def test_an_answer_that_has_not_the_form_changes_nothing(secured: Hall, tmp_path: Path) -> None:
    (tmp_path / "fan").write_text("1\n")
    # Without a model nobody can hold an answer to a schema.
    done = secured(31.5, "--say", "stop the fan")
    assert "not acted on" in done.stdout
    assert (tmp_path / "fan").read_text() == "1\n"


def test_danger_asks_nobody(secured: Hall, tmp_path: Path) -> None:
    done = secured(46.0, "--say", "stop the fan")
    assert "answer" not in done.stdout
    assert (tmp_path / "fan").read_text() == "1\n"


@pytest.fixture(scope="module")
def with_a_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hall, Path]]:
    folder = tmp_path_factory.mktemp("model")
    with fleet(folder, "w1") as (running, _):
        yield hall(folder, "--broker", running.broker.url), folder / "fan"


@pytest.mark.model
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("temperature_c", "words", "fan"),
    [
        (31.5, ("--count", "1"), "1\n"),
        (21.5, ("--count", "1"), "0\n"),
        (31.5, ("--say", "stop the fan"), "0\n"),
        (21.5, ("--say", "it is stuffy in here, fan on please"), "1\n"),
    ],
)
def test_the_default_model_runs_the_fan(
    with_a_model: tuple[Hall, Path], temperature_c: float, words: tuple[str, ...], fan: str
) -> None:
    run, file = with_a_model
    done = run(temperature_c, *words)
    assert file.read_text() == fan, done.stdout
