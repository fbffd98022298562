"""The held-out suite is sound: every item asks for what its check wants."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from models.evaluate.checks import is_right
from models.suite import (
    AnyCheck,
    ChoiceCheck,
    ContainsCheck,
    FirstWordCheck,
    JsonCheck,
    NumberCheck,
    RefusalCheck,
    SuiteError,
    SuiteItem,
    load_suite,
    read_items,
)

ITEMS = load_suite()
ACTIONS = ("turn_on", "turn_off", "set", "open", "close", "start", "stop", "lock", "unlock")
JSON_TYPES = {str: "string", int: "number", float: "number", type(None): "null"}


def asked(item: SuiteItem) -> str:
    return " ".join(content for _, content in item.messages)


def wanting(kind: type) -> list[SuiteItem]:
    return [item for item in ITEMS if isinstance(item.check, kind)]


def test_the_suite_is_large_and_covers_every_family() -> None:
    sizes = Counter((item.language, item.family) for item in ITEMS)
    assert sum(size for (language, _), size in sizes.items() if language == "en") >= 480
    assert sum(size for (language, _), size in sizes.items() if language == "zh") >= 100
    assert {family for _, family in sizes} == {
        *("command", "classify", "extract", "threshold", "arithmetic"),
        *("units", "summary", "facts", "rewrite", "refuse"),
    }


def test_no_id_and_no_prompt_comes_twice() -> None:
    assert max(Counter(item.id for item in ITEMS).values()) == 1
    assert max(Counter(item.messages for item in ITEMS).values()) == 1


def test_yes_is_not_the_better_guess() -> None:
    wanted = Counter(item.check.want for item in ITEMS if isinstance(item.check, FirstWordCheck))
    assert set(wanted) == {"yes", "no", "是", "否"}
    assert abs(wanted["yes"] - wanted["no"]) <= 6
    assert abs(wanted["是"] - wanted["否"]) <= 2


def test_a_prompt_for_json_names_its_keys() -> None:
    for item in wanting(JsonCheck):
        assert [key for key in item.check.want if key not in asked(item).lower()] == [], item.id


def test_a_json_schema_allows_the_right_answer() -> None:
    for item in wanting(JsonCheck):
        assert item.schema is not None, item.id
        fields = item.schema["properties"]
        assert list(fields) == list(item.check.want) == item.schema["required"], item.id
        for key, value in item.check.want.items():
            assert JSON_TYPES[type(value)] in fields[key]["type"], item.id
            assert value in fields[key].get("enum", [value]), item.id


def test_what_json_must_hold_stands_in_the_prompt() -> None:
    """A number as digits, a text as it is; `two units` is said to be a digit."""
    for item in wanting(JsonCheck):
        text = asked(item).lower().replace("two units", "2 units")
        for value in item.check.want.values():
            if isinstance(value, str) and value not in ACTIONS:
                assert value.lower() in text, item.id
            elif isinstance(value, int | float):
                assert f"{value:.12g}" in text, item.id


def test_a_prompt_for_a_label_lists_the_labels() -> None:
    for item in wanting(ChoiceCheck):
        assert item.check.want in item.check.labels, item.id
        assert [label for label in item.check.labels if label not in asked(item)] == [], item.id


def test_a_prompt_for_a_verdict_names_the_words() -> None:
    for item in wanting(FirstWordCheck):
        words = ("yes", "no") if item.language == "en" else ("是", "否")
        assert all(word in asked(item) for word in words), item.id


def test_a_careful_answer_passes() -> None:
    assert [item.id for item in ITEMS if not is_right(item.check, ideal_answer(item))] == []


@pytest.mark.parametrize("chatter", ["", "Well, I am not quite sure.", "{}", "43.5 or 42"])
def test_silence_and_chatter_do_not_pass(chatter: str) -> None:
    assert [item.id for item in ITEMS if is_right(item.check, chatter)] == []


def ideal_answer(item: SuiteItem) -> str:
    match item.check:
        case JsonCheck(want=wanted):
            return msgspec.json.encode(wanted).decode()
        case NumberCheck(want=number):
            return f"{number:g} units"
        case AnyCheck(want=words):
            return f"It is {words[0]}."
        case ContainsCheck(want=phrases):
            return " ".join(phrase if isinstance(phrase, str) else phrase[0] for phrase in phrases)
        case ChoiceCheck(want=text) | FirstWordCheck(want=text) | RefusalCheck(want=text):
            return text


GOOD = '{"id": "a", "family": "facts", "prompt": "?", "check": {"kind": "any", "want": ["x"]}}'


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(GOOD + "\n\n" + GOOD.replace('"a"', '"b"') + "\n", "utf-8")
    items = read_items(path)
    assert [item.id for item in items] == ["a", "b"]
    assert items[0].language == "en"
    assert items[0].messages == (("user", "?"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "\n" + GOOD, "line 2: the id 'a' comes twice"),
        (GOOD.replace("any", "some"), "line 1: Invalid value 'some'"),
        (GOOD.replace('"prompt"', '"promt"'), "line 1: Object contains unknown field `promt`"),
        (GOOD + "\n{", "line 2: Input data was truncated"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(SuiteError, match=said):
        read_items(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"none\.jsonl cannot be read"):
        read_items(tmp_path / "none.jsonl")
