"""What the documents tell people to type works, and every command is documented."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs.render import programs, render_commands

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
LINES = re.DOTALL | re.MULTILINE

TOUR = re.search(r"<!-- tour:begin -->(.*)<!-- tour:end -->", README, re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)$", TOUR[1] if TOUR else "", re.MULTILINE)


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of somebody who ran `fleet up` in another terminal."""
    folder = tmp_path_factory.mktemp("tour")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "EDGEFLEET_DATA": str(folder / "data"), "PATH": path}
    command = ["fleet", "up", "--workers", "1", "--simulated-cloud", "--json"]
    with (folder / "up.log").open("wb") as log:
        up = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert up.stdout
        assert up.stdout.readline(), (folder / "up.log").read_text()
        yield {**environ, "PWD": str(folder)}
    finally:
        up.terminate()
        up.wait(60)
        assert up.stdout
        up.stdout.close()


@pytest.mark.model
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_tour_works(environ: dict[str, str], command: str) -> None:
    outcome = subprocess.run(  # noqa: S602 - typed as a person would, redirections included
        command,
        shell=True,
        cwd=environ["PWD"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() or ">" in command


def test_the_tour_is_there() -> None:
    assert len(COMMANDS) >= 8


def test_every_command_is_documented_as_it_is() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == render_commands(), "run `make docs`"


def test_every_make_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [README, (ROOT / "CONTRIBUTING.md").read_text()]
    pattern = re.compile(r"^\$ make ([a-z0-9-]+)", re.MULTILINE)
    named = {word for text in texts for word in pattern.findall(text)}
    assert named >= {"demo", "test", "check"}
    assert named <= targets


PASSED_ON = {("fleet", "sim"): ("cloud-dispatcher", "simulate")}
"""Commands whose options are those of another one, which does the work."""


def typed_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield a program and its words for each line of a code block that starts one."""
    pages = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
    for block in re.findall(r"^```.*?$(.*?)^```", "".join(p.read_text() for p in pages), LINES):
        for line in block.splitlines():
            for name in programs():
                if line.removeprefix("$ ").startswith(f"{name} "):
                    words = line.removeprefix("$ ").removeprefix(name)
                    yield name, shlex.split(words, comments=True)


@pytest.mark.parametrize(("program", "words"), list(typed_commands()))
def test_every_command_in_the_documents_is_one_and_has_its_options(
    program: str, words: list[str]
) -> None:
    program, *words = [*PASSED_ON.get((program, words[0]), (program, words[0])), *words[1:]]
    command: click.Command = programs()[program]
    rest = iter(words)
    while isinstance(command, click.Group):
        child = command.get_command(click.Context(command), next(rest, ""))
        assert child, words
        command = child
    known = {name for option in command.params for name in option.opts + option.secondary_opts}
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert given <= known, given - known


def groups(name: str, group: click.Group) -> Iterator[tuple[str, click.Group]]:
    yield name, group
    context = click.Context(group)
    for word in group.list_commands(context):
        below = group.get_command(context, word)
        if isinstance(below, click.Group):
            yield from groups(f"{name} {word}", below)


ALL_GROUPS = [
    found
    for name, program in programs().items()
    if isinstance(program, click.Group)
    for found in groups(name, program)
]


@pytest.mark.parametrize(("name", "group"), ALL_GROUPS, ids=[name for name, _ in ALL_GROUPS])
def test_no_command_is_summed_up_in_half_a_sentence(name: str, group: click.Group) -> None:
    shown = group.get_help(click.Context(group, info_name=name, terminal_width=80))
    assert [line for line in shown.splitlines() if line.endswith("...")] in ([], [usage(shown)])


def usage(shown: str) -> str:
    return shown.splitlines()[0]
