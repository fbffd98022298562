"""What comes from a provider is asked for in a form, and checked."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from cloud_dispatcher.adapters.answer_form import fit, instruction
from fleet_protocol.messages import OutputFormat

COMMAND = {
    "type": "object",
    "properties": {"device": {"type": "string"}, "value": {"type": ["number", "null"]}},
    "required": ["device", "value"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("output", "text", "becomes"),
    [
        (OutputFormat(choices=("yes", "no")), "yes", "yes"),
        (OutputFormat(choices=("yes", "no")), " Yes.\n", "yes"),
        (OutputFormat(choices=("Yes", "yes")), "Yes", "Yes"),
        (OutputFormat(choices=("关灯", "开灯")), "开灯", "开灯"),
        (OutputFormat(regex=r"\d+(\.\d)?"), "21.5\n", "21.5"),
        (OutputFormat(regex=r"^\d+$"), "21", "21"),
        (OutputFormat(regex=r"a\n"), "a\n", "a\n"),
        (OutputFormat(json=True), '{"a":\n [1,2.50]}\n', '{"a": [1, 2.5]}'),
        (
            OutputFormat(json_schema=COMMAND),
            '{"value":null,"device":"灯"}',
            '{"value": null, "device": "灯"}',
        ),
    ],
)
def test_an_answer_of_the_form_is_written_as_a_board_writes_it(
    output: OutputFormat, text: str, becomes: str
) -> None:
    fitted = fit(text, output)
    assert (fitted.text, fitted.misfit) == (becomes, "")


@pytest.mark.parametrize(
    ("output", "text", "said"),
    [
        (OutputFormat(choices=("yes", "no")), "maybe", "none of the choices"),
        (OutputFormat(regex=r"\d+"), "21 C", "regular expression"),
        (OutputFormat(regex=r"a|b"), "ab", "regular expression"),
        (OutputFormat(json=True), "Sure! {}", "not JSON"),
        (OutputFormat(json=True), '{"a": 1', "not JSON"),
        (OutputFormat(json=True), '{"a": NaN}', "not JSON"),
        (OutputFormat(json=True), "[" * 100_000, "not JSON"),
        (OutputFormat(json=True), "[1]", "not valid"),
        (OutputFormat(json_schema=COMMAND), '{"device": "lamp"}', "not valid"),
        (OutputFormat(json_schema={"type": "objekt"}), "{}", "cannot be checked"),
        (OutputFormat(json_schema={"$ref": "http://127.0.0.1:9/x.json"}), "{}", "cannot be"),
    ],
)
def test_an_answer_of_another_form_is_kept_and_says_why(
    output: OutputFormat, text: str, said: str
) -> None:
    fitted = fit(text, output)
    assert said in fitted.misfit
    assert fitted.text.replace(" ", "") == text.replace(" ", "")


def test_what_is_wrong_is_said_without_quoting_the_answer() -> None:
    fitted = fit('{"device": 123456, "value": 1}', OutputFormat(json_schema=COMMAND))
    assert fitted.misfit
    assert "123456" not in fitted.misfit


def test_an_expression_that_takes_backtracking_is_not_tried() -> None:
    assert "regular expression" in fit("aa", OutputFormat(regex=r"(a)\1")).misfit
    schema = {"type": "string", "pattern": r"^(a)\1$"}
    assert "cannot be checked" in fit('"aa"', OutputFormat(json_schema=schema)).misfit


def test_a_schema_makes_nobody_fetch_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        assert "cannot be checked" in fit("{}", OutputFormat(json_schema={"$ref": uri})).misfit
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_no_expression_takes_more_than_linear_time() -> None:
    begun_s = time.process_time()
    assert fit("a" * 30_000, OutputFormat(regex="(a*)*b")).misfit
    assert time.process_time() - begun_s < 5


@pytest.mark.parametrize(
    "fields",
    [{"json": True}, {"json_schema": COMMAND}, {"regex": "a+"}, {"choices": ("关灯", 'say "x"')}],
)
def test_the_form_is_said_in_words(fields: dict[str, Any]) -> None:
    text = instruction(OutputFormat(**fields))
    if "choices" in fields:
        assert "关灯" in text
    elif "regex" in fields:
        assert text.endswith("a+")
    else:
        assert "json" in text.lower()
