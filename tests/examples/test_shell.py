"""The shell scripts, as somebody types them, with Mosquitto's tools and MQTT 3.1.1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.examples.device_site import HOST, DeviceSite

pytestmark = pytest.mark.broker

FOLDER = Path(__file__).parents[2] / "examples" / "shell"
DEVICE = "hall-3"


@pytest.fixture(scope="module")
def environ(site: DeviceSite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The configuration of the tools, as README.md has it."""
    require(shutil.which("mosquitto_sub") is not None, "mosquitto_sub")
    folder = tmp_path_factory.mktemp("config")
    lines = [
        *(f"-h {HOST}", f"-p {site.port}", f"--cafile {site.ca_file}"),
        *(f"-u {DEVICE}", f"-P {site.passwords[DEVICE]}"),
    ]
    for tool in ("mosquitto_pub", "mosquitto_sub"):
        (folder / tool).write_text("\n".join((*lines, "")))
    return {**os.environ, "XDG_CONFIG_HOME": str(folder), "FLEET_PATIENCE_S": "60"}


def run(
    environ: dict[str, str], script: str, *words: str, job: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FOLDER / script), *words],
        input=job, env=environ, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_a_question_is_answered(environ: dict[str, str]) -> None:
    done = run(environ, "ask.sh", DEVICE, "what a fine day")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("what a fine day")


def test_a_device_that_the_broker_does_not_know_is_told_what_to_look_at(
    environ: dict[str, str],
) -> None:
    done = run({**environ, "FLEET_PATIENCE_S": "1"}, "ask.sh", "hall-4", "what a fine day")
    assert done.returncode == 4
    assert "may we speak as hall-4?" in done.stderr


def test_a_job_is_answered_and_its_id_makes_it_repeatable(environ: dict[str, str]) -> None:
    job = '{"prompt": "good morning", "max_tokens": 8}'
    first, again = (run(environ, "job.sh", DEVICE, "reading-7", job=job) for _ in range(2))
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert (result["status"], result["id"]) == ("ok", "reading-7")
    assert result["text"].startswith("good morning")
    assert again.stdout == first.stdout


def test_a_job_that_is_no_job_is_refused_with_a_code(environ: dict[str, str]) -> None:
    done = run(environ, "job.sh", DEVICE, "reading-8", job='{"max_tokens": 8}')
    assert done.returncode == 2
    assert json.loads(done.stderr)["code"] == "invalid_field", done.stderr


def test_a_job_that_fails_says_so(environ: dict[str, str]) -> None:
    job = '{"prompt": "x", "output": {"regex": "[a-z]+"}, "escalate": "never"}'
    done = run(environ, "job.sh", DEVICE, "reading-9", job=job)
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "failed"
