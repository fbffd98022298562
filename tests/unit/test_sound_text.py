"""Halves of characters, which JSON can escape and nothing can store."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.adapters.answer_form import fit
from cloud_dispatcher.adapters.sound_text import SoundPieces, sound
from fleet_protocol.messages import OutputFormat

ANY_CODE_POINTS = st.text(st.characters(min_codepoint=0xD7FF, max_codepoint=0x1F64F))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("warm", "warm"),
        ("grün \U0001f600", "grün \U0001f600"),
        ("a \ud83d\ude00 b", "a \U0001f600 b"),
        ("a \ud83d b", "a \ufffd b"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
    ],
)
def test_halves_are_joined_and_one_alone_is_no_character(said: str, kept: str) -> None:
    assert sound(said) == kept


@given(ANY_CODE_POINTS)
def test_whatever_was_escaped_can_be_written_down(text: str) -> None:
    said = json.loads(json.dumps(text))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sound(said))) == sound(said)


@given(st.lists(ANY_CODE_POINTS))
def test_in_pieces_it_is_the_same_text_but_for_a_half_at_its_end(pieces: list[str]) -> None:
    one = SoundPieces()
    told = "".join(map(one.take, pieces)) + sound(one.take("."))
    assert told == sound("".join(pieces) + ".")


def test_json_with_half_a_character_in_it_is_of_its_form_and_can_be_stored() -> None:
    output = OutputFormat(json_schema={"type": "object", "required": ["say"]})
    found = fit('{"say": "so \\ud83d"}', output)
    assert (found.misfit, found.text) == ("", '{"say": "so \ufffd"}')
