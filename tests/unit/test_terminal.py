"""How programs end: one form of errors for people, one for programs; streams that are gone."""

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cloud_dispatcher.cli.main import main as cloud_dispatcher
from edge_worker.cli.program import main as edge_worker
from fleet_cli.__main__ import run as run_fleet
from fleet_cli.root import root as fleet
from models.cli import cli as models

PROGRAMS = ("fleet_cli", "cloud_dispatcher", "edge_worker", "models")
GROUPS = {"fleet": fleet, "dispatcher": cloud_dispatcher, "worker": edge_worker, "models": models}


def commands(group: click.Group, before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that does something."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name)


COMMANDS = [words for name, group in GROUPS.items() for words in commands(group, (name,))]


def told(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> tuple[int, str, str]:
    """Run a command in this process: its exit code, its output and what it says beside."""
    if words[0] == "fleet":
        code = run_fleet(list(words[1:]))
        shown = capsys.readouterr()
        return code, shown.out, shown.err
    done = CliRunner().invoke(GROUPS[words[0]], words[1:])
    return done.exit_code, done.stdout, done.stderr


def error_in(output: str) -> dict[str, str]:
    """Return the error that is all that a command printed."""
    (line,) = output.splitlines()
    (error,) = json.loads(line).values()
    assert set(error) == {"code", "message", "hint"}
    assert all(isinstance(text, str) for text in error.values())
    return dict(error)


_HANDED_ON = {("fleet", "route"), ("fleet", "sim")}
"""What they are told is for the worker's and the dispatcher's program, which end them."""


@pytest.mark.parametrize("words", [w for w in COMMANDS if w not in _HANDED_ON], ids=" ".join)
def test_every_command_tells_an_error_as_an_object_where_json_is_asked_for(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, beside = told(capsys, (*words, "--no-such-option", "--json"))
    error = error_in(output)
    assert (code, error["code"], beside) == (2, "usage", "")
    assert "--no-such-option" in error["message"]
    assert " ".join(words[1:]) + " --help" in error["hint"]

    spoken = told(capsys, (*words, "--no-such-option"))
    assert spoken[:2] == (code, "")
    assert "--no-such-option" in spoken[2]


def command_of(words: tuple[str, ...]) -> click.Command:
    """Return the command of these words."""
    command: click.Command = GROUPS[words[0]]
    for word in words[1:]:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def asks_a_fleet(words: tuple[str, ...]) -> bool:
    """Say whether a command takes what names a fleet, and prints JSON."""
    options = {option for parameter in command_of(words).params for option in parameter.opts}
    return {"--json", "--identity"} <= options


SPEAKING_OTHERWISE = {
    *("fleet acl render", "fleet audit export", "fleet completion"),  # files for other programs
    *("fleet route", "fleet sim"),  # hand all words on to programs that have it
    *("fleet pki serve", "fleet audit broker", "dispatcher run", "worker run"),  # services
    "fleet submit",  # an object a job: --jsonl
}


def test_every_command_can_tell_a_program_what_came_of_it() -> None:
    silent = {
        " ".join(words)
        for words in COMMANDS
        for command in [command_of(words)]
        if not isinstance(command, click.Group)
        and not any("--json" in parameter.opts for parameter in command.params)
    }
    assert silent == SPEAKING_OTHERWISE


@pytest.mark.parametrize("words", [w for w in COMMANDS if asks_a_fleet(w)], ids=" ".join)
def test_every_command_that_asks_a_fleet_tells_programs_why_it_cannot(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["x" for parameter in command_of(words).params if parameter.required]
    asked = (*words, *needed, "--broker", "nonsense")
    code, output, beside = told(capsys, (*asked, "--json"))
    error = error_in(output)
    assert (code, error["code"], beside) == (2, "config", "")

    spoken = told(capsys, asked)
    assert spoken[:2] == (code, "")
    assert spoken[2] == f"fleet: {error['message']} [config]\nnext: {error['hint']}\n"


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


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("cloud_dispatcher", "check --config /nonexistent"),
        ("cloud_dispatcher", "keys ls --file /nonexistent"),
        ("edge_worker", "check --config /nonexistent"),
        ("fleet_cli", 'route "x" --config /nonexistent'),
        ("fleet_cli", "sim /nonexistent"),
        ("fleet_cli", "pki ls --pki /nonexistent"),
        ("models", "show nonexistent"),
    ],
)
def test_what_people_and_programs_are_told_is_the_same(program: str, words: str) -> None:
    spoken, done = run(program, words, ""), run(program, f"{words} --json", "")
    error = error_in(done.stdout)
    assert (done.returncode, done.stderr) == (spoken.returncode, "")
    assert done.returncode != 0
    said = f"{error['message']} [{error['code']}]\nnext: {error['hint']}\n"
    assert spoken.stderr.partition(": ")[2] == said


def test_a_question_about_json_asks_for_none() -> None:
    done = run("fleet_cli", "ask --broker nonsense -- --json", "")
    assert done.stdout == ""
    assert "[config]" in done.stderr
