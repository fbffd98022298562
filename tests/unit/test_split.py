"""Cutting long texts: pure text, no jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core.split import Span, cut, estimate_tokens, group, take_apart
from fleet_protocol import messages as m

ENGLISH = "The pump in hall three was checked at noon. It runs as it should. " * 40
CHINESE = "今天上午八点，三号温室的温度升到三十一度。操作员打开了通风口。" * 40  # noqa: RUF001  # Chinese


def pieces(text: str, most_tokens: int) -> list[str]:
    return [text[start:end] for start, end in cut(text, most_tokens=most_tokens)]


@given(st.text(max_size=400), st.integers(1, 60))
def test_the_pieces_joined_are_the_text_and_none_is_too_long(text: str, most_tokens: int) -> None:
    found = pieces(text, most_tokens)
    assert "".join(found) == text
    assert all(found)
    assert all(estimate_tokens(piece) <= max(most_tokens, 2) for piece in found)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_a_text_without_paragraphs_is_cut_after_sentences(text: str) -> None:
    found = pieces(text, 100)
    assert len(found) > 1
    assert all(piece.rstrip().endswith((".", "。")) for piece in found)


def test_a_border_of_paragraphs_goes_before_one_of_sentences() -> None:
    text = "\n\n".join([ENGLISH[:200].strip()] * 6)
    assert all(piece.startswith("The pump") for piece in pieces(text, 2 * 90))


def test_the_lines_of_a_log_stay_whole() -> None:
    lines = [f"2026-11-22T08:{minute:02}:00 sensor=t1 value={minute}.5" for minute in range(60)]
    for piece in pieces("\n".join(lines), 120):
        assert set(piece.strip().split("\n")) <= set(lines)


def test_what_has_no_border_at_all_is_cut_all_the_same() -> None:
    assert [len(piece) for piece in pieces("x" * 300, 50)] == [150, 150]


def test_all_but_the_last_piece_are_at_least_half_full() -> None:
    for piece in pieces(ENGLISH, 100)[:-1]:
        assert estimate_tokens(piece) >= 50


def test_nothing_is_cut_into_nothing() -> None:
    assert cut("", most_tokens=10) == []


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40), st.integers(0, 120))
def test_groups_cover_all_in_order_and_are_fewer(sizes: list[int], most: int) -> None:
    spans = group(sizes, most=most)
    assert [number for span in spans for number in range(*span)] == list(range(len(sizes)))
    assert len(spans) < len(sizes)
    for start, end in spans:
        assert end - start <= 2 or sum(sizes[start:end]) <= most


def test_a_group_takes_as_many_as_fit() -> None:
    assert group([10, 10, 10, 10], most=30) == [Span(0, 3), Span(3, 4)]


def test_the_first_paragraph_of_a_prompt_is_the_instruction() -> None:
    long = take_apart(m.JobSubmit(prompt="Summarise\nin a line.\n\nOne.\n\nTwo."))
    assert long is not None
    assert (long.instruction, long.text) == ("Summarise\nin a line.", "One.\n\nTwo.")


def test_without_an_empty_line_the_first_line_is_the_instruction() -> None:
    long = take_apart(m.JobSubmit(prompt="Any errors?\nline one\nline two"))
    assert long is not None
    assert (long.instruction, long.text) == ("Any errors?", "line one\nline two")


def test_a_prompt_of_one_line_has_no_text_to_cut() -> None:
    assert take_apart(m.JobSubmit(prompt=ENGLISH.strip())) is None


def test_the_last_of_several_turns_is_the_text() -> None:
    system = m.ChatMessage(role=m.ChatRole.SYSTEM, content="Summarise.")
    user = m.ChatMessage(role=m.ChatRole.USER, content="One.\n\nTwo.")
    long = take_apart(m.JobSubmit(messages=(system, user), stream=True, split=m.Split.AUTO))
    assert long is not None
    assert (long.before, long.instruction, long.text) == ((system,), "", "One.\n\nTwo.")
    part = long.ask(m.JobSubmit(prompt="x", stream=True, split=m.Split.AUTO, priority=7), "One.")
    assert part.messages == (system, m.ChatMessage(role=m.ChatRole.USER, content="One."))
    assert (part.split, part.stream, part.priority) == (m.Split.NO, False, 7)


def test_a_conversation_that_ends_with_an_answer_has_no_text() -> None:
    turns = tuple(m.ChatMessage(role=role, content="a\n\nb") for role in m.ChatRole)
    assert take_apart(m.JobSubmit(messages=turns)) is None


def test_a_form_excludes_parts() -> None:
    with pytest.raises(ValueError, match="`output` or `split`"):
        m.JobSubmit(prompt="x", split=m.Split.AUTO, output=m.OutputFormat(choices=("a", "b")))
