"""`fleet library`: what an operator learns of a library before a fleet needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fleet_protocol
from fleet_cli.__main__ import run
from fleet_cli.exits import ExitCode

EXAMPLE = str(Path(fleet_protocol.__file__).with_name("library.example.toml"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def run_it(*words: str, code: int = 0) -> dict[str, Any]:
        assert run(["library", *words, "--json"]) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run_it


def library(folder: Path, text: str) -> str:
    (folder / "l.toml").write_text(text)
    return str(folder / "l.toml")


def test_the_example_is_good_and_none_of_its_examples_misleads(said: Any) -> None:
    found = said("check", EXAMPLE)
    assert (found["ok"], found["default"], found["remarks"]) == (True, True, [])
    assert found["entries"] >= 5
    assert min(found["exact"], found["pattern"], found["nearest"]) >= 1


def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = library(tmp_path, '[[entry]]\nname = "a"\nanswer = "x"\n')
    assert run(["library", "check", path]) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "line 1" in told
    assert "no question" in told
    assert run(["library", "ask", str(tmp_path / "none.toml"), "x"]) == ExitCode.USAGE
    assert "none.toml" in capsys.readouterr().err


def test_examples_that_lead_elsewhere_are_named(tmp_path: Path, said: Any) -> None:
    path = library(
        tmp_path,
        """
[[entry]]
name = "a"
answer = "x"
nearest = ["reset the pump of the hall"]
[[entry]]
name = "b"
answer = "y"
nearest = ["reset the hall's pump", "is it that"]
[[entry]]
name = "c"
answer = "z"
pattern = ["* hall"]
""",
    )
    remarks = {row["example"]: row for row in said("check", path)["remarks"]}
    assert remarks["reset the pump of the hall"]["leads_to"] == "c"
    assert remarks["is it that"]["leads_to"] == ""
    assert "too few words" in remarks["is it that"]["why"]


def test_the_entry_the_kind_and_the_score_are_told(said: Any) -> None:
    found = said("ask", EXAMPLE, "how many degrees must water reach to boil")
    assert found["answer"]["entry"] == "boiling-point"
    assert found["answer"]["kind"] == "nearest"
    assert 0.6 <= found["answer"]["score"] < 1.0
    assert found["near"][0]["example"]
    assert found["advice"] == ""


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Turn off the pump", "off, on"),
        ("turn on the heating of the hall", "is needed"),
        ("Who wrote Hamlet?", "write an entry"),
        ("turn on the pump in a cellar in hall", "about as close"),
        ("pump " * 500, "2000 characters"),
    ],
)
def test_what_would_change_it_is_told(tmp_path: Path, said: Any, question: str, words: str) -> None:
    path = library(
        tmp_path,
        """
[[entry]]
name = "a"
answer = "x"
nearest = ["turn on the pump in the cellar of hall north"]
[[entry]]
name = "b"
answer = "y"
nearest = ["turn on the pump in the cellar of hall south"]
""",
    )
    found = said("ask", path, question, code=1)
    assert found["answer"] is None
    assert words in found["advice"]


def test_people_get_the_answer_on_standard_output_and_the_rest_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["library", "ask", EXAMPLE, "I smell gas"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("Leave the building")
    assert "gas-smell, pattern match" in told.err
    assert run(["library", "check", EXAMPLE]) == 0
    assert "good: 6 entries" in capsys.readouterr().out
