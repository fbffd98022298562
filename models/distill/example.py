"""One thing to learn: a conversation's question and the answer to it."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
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


_IN_SYSTEM_TURN: Final = 0.06
_WITH_PREAMBLE: Final = 0.25
_CARRIED: Final = 0.2
_PLAIN: Final = 0.5
_QUOTES: Final = frozenset("\"'`“”\u2018\u2019«»「」『』")


class Frames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What people put around an instruction and its content, in one language.

    Attributes:
        between: What separates a preamble from what follows on its line.
        plain: The usual layouts of an instruction `{i}` and its content `{c}`.
        layouts: The other ones.
        preambles: Sentences before the whole, which say nothing about the answer.
        carriers: Ways in which the content reaches the reader, which become part of it.
        who: People for `{who}` in preambles and carriers.
        where: Places for `{where}`.
    """

    between: str = " "
    plain: tuple[str, ...] = ("{i}\n{c}", "{i} {c}", '{i} "{c}"')
    layouts: tuple[str, ...] = ()
    preambles: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ()
    who: tuple[str, ...] = ()
    where: tuple[str, ...] = ()


@cache
def frames() -> Mapping[str, Frames]:
    """Return the frames that come with the program, by language."""
    text = resources.files("models.distill").joinpath("families", "frames.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Frames])


def place_instruction(
    instruction: str, content: str, *, language: str, draw: random.Random, carry: bool = True
) -> tuple[str | None, str]:
    """Put an instruction and what it is about together; return the system turn and the prompt.

    A language without frames of its own gets the plain layouts.

    Args:
        instruction: What to do.
        content: What to do it with.
        language: Of both.
        draw: Chooses how they are put together.
        carry: Whether people and places that are no part of the content may be named: by a
            carrier of it, or in a preamble.
    """
    if draw.random() < _IN_SYSTEM_TURN:
        return instruction, content
    known = frames().get(language, Frames())
    if carry and known.carriers and draw.random() < _CARRIED:
        carrier = draw.choice(known.carriers)
        if not _clash(carrier, content):
            content = _name(carrier, known, draw).replace("{c}", content)
    plain = not known.layouts or draw.random() < _PLAIN
    layout = draw.choice(known.plain if plain else known.layouts)
    if _clash(layout, content):
        layout = known.plain[0]
    prompt = layout.format(i=instruction, c=content)
    preambles = [text for text in known.preambles if carry or "{" not in text]
    if not preambles or draw.random() >= _WITH_PREAMBLE:
        return None, prompt
    goes_on = prompt.startswith(instruction) and draw.random() < 0.5
    separator = known.between if goes_on else "\n"
    preamble = _name(draw.choice(preambles), known, draw)
    return None, f"{preamble}{separator}{prompt}"


def _clash(frame: str, content: str) -> bool:
    """Return whether the frame quotes with a mark that the content holds already."""
    return not _QUOTES.isdisjoint(set(frame) & set(content))


def _name(frame: str, known: Frames, draw: random.Random) -> str:
    """Fill in who and where."""
    for slot, names in (("{who}", known.who), ("{where}", known.where)):
        if slot in frame:
            frame = frame.replace(slot, draw.choice(names))
    return frame


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
