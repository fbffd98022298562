"""How an instruction and its content are put together: variously, and without loss."""

from __future__ import annotations

import random

import pytest

from models.distill.example import Frames, frames, place_instruction

INSTRUCTION = "Say what it is."
CONTENT = "open the vent"


def placed(
    count: int = 2_000, *, content: str = CONTENT, language: str = "en", carry: bool = True
) -> list[tuple[str | None, str]]:
    draw = random.Random(5)
    return [
        place_instruction(INSTRUCTION, content, language=language, draw=draw, carry=carry)
        for _ in range(count)
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_frame_takes_what_it_frames(language: str) -> None:
    known = frames()[language]

    for layout in (*known.plain, *known.layouts):
        text = layout.format(i="\0", c="\1")
        assert text.count("\0") == text.count("\1") == 1, layout
    for carrier in known.carriers:
        assert carrier.format(c="\1", who="", where="").count("\1") == 1, carrier
    for preamble in known.preambles:
        assert preamble.format(who="", where=""), preamble


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("carry", [True, False])
def test_instruction_and_content_are_always_there(language: str, *, carry: bool) -> None:
    for system, prompt in placed(language=language, carry=carry):
        assert INSTRUCTION in (system or prompt)
        assert CONTENT in prompt
        assert not any(slot in prompt for slot in ("{i}", "{c}", "{who}", "{where}"))


def test_a_few_instructions_stand_in_the_system_turn() -> None:
    alone = [prompt for system, prompt in placed() if system is not None]

    assert 60 < len(alone) < 200
    assert set(alone) == {CONTENT}


def test_layouts_vary_and_the_plain_one_is_common() -> None:
    prompts = [prompt for _, prompt in placed()]

    assert len(set(prompts)) > 800
    assert 250 < prompts.count(f"{INSTRUCTION}\n{CONTENT}") < 600


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nobody_else_is_named_where_that_could_confuse(language: str) -> None:
    known = frames()[language]
    named = {text.format(who="\0", where="\0") for text in known.preambles if "{" in text}
    fixed = {text for text in known.preambles if "{" not in text}
    layouts = {text.format(i=INSTRUCTION, c=CONTENT) for text in (*known.plain, *known.layouts)}

    for system, prompt in placed(language=language, carry=False):
        bare = system is not None or prompt in layouts
        assert bare or any(prompt.startswith(text) for text in fixed - named), prompt


@pytest.mark.parametrize("quote", ['"', "'", "`", "“", "「"])
def test_content_with_a_quote_is_not_put_between_the_same(quote: str) -> None:
    content = f"say {quote}yes"

    for language in ("en", "zh"):
        for _, prompt in placed(content=content, language=language, carry=True):
            around = prompt.replace(content, "").replace(INSTRUCTION, "")
            assert quote not in around, prompt


def test_another_language_gets_the_plain_layouts() -> None:
    plain = {text.format(i=INSTRUCTION, c=CONTENT) for text in Frames().plain}

    assert {prompt for system, prompt in placed(language="fr") if system is None} == plain
