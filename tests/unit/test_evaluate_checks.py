"""An answer is right when the program that reads it can use it."""

from __future__ import annotations

import pytest

from models.evaluate.checks import first_number, holds, is_right, parse_object
from models.suite import (
    AnyCheck,
    Check,
    ChoiceCheck,
    ContainsCheck,
    FirstWordCheck,
    JsonCheck,
    NumberCheck,
    RefusalCheck,
    Script,
)

LAMP = JsonCheck(want={"device": "hall lamp", "action": "set", "value": 21})
PUMP = JsonCheck(want={"pump": 3, "note": None})
LABEL = ChoiceCheck(want="warning", labels=("error", "warning"))
YES = FirstWordCheck(want="yes")
REFUSAL = RefusalCheck(want="I cannot answer that here.")
SHORT = ContainsCheck(want=("pump", ("stopped", "halted")), max_words=6, max_sentences=1)
HAN = ContainsCheck(want=("门",), script=Script.HAN)
LATIN = ContainsCheck(want=("door",), script=Script.LATIN)
CAPITALS = ContainsCheck(want=("WET FLOOR",), has_case=True)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (LAMP, '{"device": "hall lamp", "action": "set", "value": 21}'),
        (LAMP, ' {"value": 21.0, "device": "Hall Lamp", "action": "SET"}\n'),
        (PUMP, '{"pump": 3, "note": null}'),
        (LABEL, "Warning."),
        (LABEL, '"warning"'),
        (YES, "Yes, it is above the limit."),
        (YES, "**yes**"),
        (FirstWordCheck(want="是"), "是的。"),
        (NumberCheck(want=62), "62"),
        (NumberCheck(want=3000), "3,000 m"),
        (NumberCheck(want=-4), "\u22124 degrees"),
        (NumberCheck(want=2.5), "= 2.50 km"),
        (AnyCheck(want=("carbon dioxide", "CO2")), "Plants take in co2."),
        (AnyCheck(want=("protect",)), "It protects the wires."),
        (REFUSAL, "i cannot answer that here"),
        (RefusalCheck(want="我在这里无法回答。"), "我在这里无法回答"),
        (SHORT, "Pump 3 halted at 10.5 bar."),
        (HAN, "请关 door 门。"),
        (LATIN, "Close the door."),
        (CAPITALS, "WET FLOOR!"),
    ],
)
def test_a_right_answer_passes(check: Check, answer: str) -> None:
    assert is_right(check, answer)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (LAMP, '{"device": "hall lamp", "action": "set", "value": "21"}'),
        (LAMP, '{"device": "hall lamp", "action": "set"}'),
        (LAMP, '{"device": "hall lamp", "action": "set", "value": 21, "room": "hall"}'),
        (LAMP, 'Sure: {"device": "hall lamp", "action": "set", "value": 21}'),
        (LAMP, '```json\n{"device": "hall lamp", "action": "set", "value": 21}\n```'),
        (JsonCheck(want={"ok": 1}), '{"ok": true}'),
        (PUMP, '{"pump": 3, "note": ""}'),
        (PUMP, '[{"pump": 3, "note": null}]'),
        (LABEL, "error"),
        (LABEL, "warning or error"),
        (YES, "yesterday"),
        (YES, "No, yes"),
        (FirstWordCheck(want="是"), "不是"),
        (NumberCheck(want=62), "34 + 28 = 62"),
        (NumberCheck(want=4), "-4"),
        (NumberCheck(want=2), "2.5"),
        (NumberCheck(want=2), "two"),
        (AnyCheck(want=("Au",)), "Australia"),
        (AnyCheck(want=("ice",)), "It is a nice device."),
        (AnyCheck(want=("12",)), "It has 112 or 12.5."),
        (REFUSAL, "I cannot answer that here. But I think it rains."),
        (SHORT, "The pump number 3 has stopped now."),
        (SHORT, "Pump stopped. It rests."),
        (SHORT, "The pump runs."),
        (HAN, "The door is 门"),
        (LATIN, "door 门"),
        (CAPITALS, "Wet floor"),
    ],
)
def test_a_wrong_answer_does_not(check: Check, answer: str) -> None:
    assert not is_right(check, answer)


def test_only_a_whole_object_is_json() -> None:
    assert parse_object(' {"a": [1, 2]} ') == {"a": [1, 2]}
    assert parse_object("[1]") is None
    assert parse_object('{"a": 1') is None
    assert parse_object('{"a": "\ud800"}') is None


def test_a_number_may_be_grouped_and_end_a_sentence() -> None:
    assert first_number("That makes 1,250,000.") == 1_250_000
    assert first_number("pick 3,4 or 5") == 3
    assert first_number("none") is None


def test_a_phrase_begins_where_a_word_begins() -> None:
    assert holds("Ventilation started", "ventilat")
    assert holds("two cats", "cat")
    assert not holds("concatenate", "cat")
    assert holds("it was -3 degrees", "-3")
    assert holds("at 31°C", "31")
