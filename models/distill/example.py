"""One thing to learn: a conversation's question and the answer to it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

Json: TypeAlias = str | int | float | None
"""A value of an answer's JSON object."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A question with its right answer.

    Attributes:
        family: Task family, e.g. `command`.
        language: `en` or `zh`.
        system: A system turn before the question; None: no such turn.
    """

    family: str
    language: str
    prompt: str
    answer: str
    system: str | None = None


def write_json(keys: Sequence[str], values: Sequence[Json]) -> str:
    """Return one line of JSON; values that are missing at the end are null."""
    filled = [*values, *([None] * (len(keys) - len(values)))]
    return json.dumps(dict(zip(keys, filled, strict=True)), ensure_ascii=False)


_LAYOUTS: Final = {
    "{i}\n{c}": 40,
    "{i}{s}{c}": 14,
    '{i}{s}"{c}"': 12,
    "{i}\n\n{c}\n": 6,
    "{c}\n{i}": 8,
    '"{c}"{s}{i}': 4,
    "{c}\n\n{i}": 4,
    "{i}\n---\n{c}": 4,
    "{c} -> {i}": 3,
    "{i}: {c}": 3,
    "{i} >> {c}": 2,
    "{i}\nText: {c}": 4,
    "Text: {c}\n{i}": 3,
    "{i}\nInput: {c}\nOutput:": 3,
    "{i}\n'{c}'": 2,
    "{c} | {i}": 1,
    "Message: {c}\nTask: {i}": 2,
    "{i}\n\n> {c}": 2,
}
_IN_SYSTEM_TURN: Final = 0.08


def place_instruction(
    instruction: str, content: str, *, language: str, draw: random.Random
) -> tuple[str | None, str]:
    """Put an instruction and what it is about together; return the system turn and the prompt."""
    if draw.random() < _IN_SYSTEM_TURN:
        return instruction, content
    layout = draw.choices(list(_LAYOUTS), list(_LAYOUTS.values()))[0]
    space = "" if language == "zh" else " "
    return None, layout.format(i=instruction, c=content, s=space)


def roughen(text: str, draw: random.Random) -> str:
    """Write as people do: now and then without capitals, with one, or with an end."""
    style = draw.random()
    if style < 0.25:
        return text[:1].upper() + text[1:]
    if style < 0.35:
        return text.rstrip(".!?")
    if style < 0.45 and text[-1:] not in ".?!%":
        return f"{text[:1].upper()}{text[1:]}."
    if style < 0.48 and text[-1:].isalnum():
        return f"{text}!"
    if style < 0.52:
        return text.lower()
    return text
