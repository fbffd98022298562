"""The form of an answer on the command line, and as an option of the client."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fleet_cli.forms import form_options
from fleet_cli.root import root
from fleet_client.options import build_submit
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import OutputFormat

SEEN: list[OutputFormat | None] = []


@click.command()
@form_options
@click.option("--json", "as_json", is_flag=True)
def show(*, output: OutputFormat | None, as_json: bool) -> None:
    """Remember the form."""
    SEEN[:] = [output]
    click.echo(str(as_json))


def form_of(*words: str) -> OutputFormat | None:
    shown = CliRunner().invoke(show, words, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return SEEN[0]


def test_without_an_option_there_is_no_form() -> None:
    assert form_of() is None


def test_each_option_names_a_form(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    assert form_of("--choices", "yes, no") == OutputFormat(choices=("yes", "no"))
    assert form_of("--regex", r"\d+") == OutputFormat(regex=r"\d+")
    assert form_of("--json-object") == OutputFormat(json=True)
    assert form_of("--schema", str(file)) == OutputFormat(json_schema={"type": "object"})


def test_printing_json_is_another_thing_than_answering_in_json() -> None:
    assert form_of("--json") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json-object", "--choices", "a"], "give one of"),
        (["--choices", "a,,b"], "length >= 1"),
        (["--regex", ""], "length >= 1"),
    ],
)
def test_a_form_that_cannot_be_is_a_usage_error(words: list[str], said: str) -> None:
    shown = CliRunner().invoke(show, words)
    assert shown.exit_code == 2
    assert said in shown.output


@pytest.mark.parametrize("text", ["{", "[1]", '"text"'])
def test_a_file_that_holds_no_schema_is_a_usage_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(text)
    shown = CliRunner().invoke(show, ["--schema", str(file)])
    assert shown.exit_code == 2
    assert "not JSON" in shown.output or "object" in shown.output


@pytest.mark.parametrize("name", ["ask", "submit"])
def test_the_commands_that_submit_take_a_form(name: str) -> None:
    shown = CliRunner().invoke(root, [name, "--help"]).output
    for option in ("--choices", "--schema", "--regex", "--json-object"):
        assert option in shown


def test_the_client_takes_a_form_as_a_struct_or_as_a_mapping() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = OutputFormat(json_schema=schema)
    assert build_submit("x", output=form).output == form
    built = build_submit("x", output={"json_schema": schema}).output
    assert built == form
    assert built.json_schema is not None
    assert json.dumps(built.json_schema) == json.dumps(schema)


def test_the_client_refuses_a_form_that_the_fleet_would() -> None:
    with pytest.raises(RejectedError, match="exactly one"):
        build_submit("x", output={"json": True, "regex": "a"})
    with pytest.raises(RejectedError, match="not both"):
        build_submit("x", output=OutputFormat(json=True), stop=("}",))
    nested: dict[str, object] = {}
    for _ in range(99):
        nested = {"items": nested}
    with pytest.raises(RejectedError, match="deeper"):
        build_submit("x", output={"json_schema": nested})
