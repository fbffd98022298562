"""How programs end whose streams are closed, full or gone."""

import subprocess
import sys

import pytest

PROGRAMS = ("fleet_cli", "cloud_dispatcher", "edge_worker", "models")


def run(program: str, words: str, streams: str) -> subprocess.CompletedProcess[str]:
    """Run a program with its streams as a shell would set them."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m {program} {words} {streams}', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_disk_under_the_output_is_said_in_one_line(program: str) -> None:
    done = run(program, "--help", ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.endswith("the output cannot be written: No space left on device [io]\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_streams_that_are_closed_keep_no_program_from_its_work(program: str) -> None:
    done = run(program, "--help", "<&- >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_question_from_a_closed_input_is_none() -> None:
    done = run("fleet_cli", "ask - --broker mqtt://127.0.0.1:1", "<&-")
    assert done.returncode == 2
    assert "there is no question" in done.stderr


@pytest.mark.parametrize(
    ("program", "words", "name", "code"),
    [
        ("fleet_cli", "ask x --broker nonsense", "fleet", "config"),
        ("cloud_dispatcher", "run --config /nonexistent", "cloud-dispatcher", "config"),
        ("edge_worker", "run --config /nonexistent", "edge-worker", "config"),
        ("models", "show nonexistent", "models", "unknown_model"),
    ],
)
def test_all_programs_say_an_error_in_the_same_form(
    program: str, words: str, name: str, code: str
) -> None:
    done = run(program, words, "")
    what, next_step = done.stderr.splitlines()
    assert what.startswith(f"{name}: ")
    assert what.endswith(f" [{code}]")
    assert next_step.startswith("next: ")
    assert done.stdout == ""
