"""A growing answer, whatever happens to its chunks."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from fleet_client.stream import StreamPiece, TextStream
from fleet_protocol.messages import TokenChunk


def run(chunks: Iterable[tuple[int, str]], final: str) -> list[StreamPiece]:
    stream = TextStream()
    pieces = [stream.grow(TokenChunk(i=i, t=t)) for i, t in chunks]
    return [piece for piece in (*pieces, stream.finish(final)) if piece is not None]


def shown(pieces: Iterable[StreamPiece]) -> str:
    text = ""
    for piece in pieces:
        text = piece if piece.starts_over else text + piece
    return text


def test_chunks_in_order_come_as_they_are() -> None:
    assert run([(0, "Yes"), (1, ", it"), (2, " is")], "Yes, it is") == ["Yes", ", it", " is"]


def test_a_lost_chunk_holds_the_rest_back_until_the_result() -> None:
    pieces = run([(0, "Yes"), (2, " is")], "Yes, it is")
    assert pieces == ["Yes", ", it is"]
    assert not any(piece.starts_over for piece in pieces)


def test_a_repeated_chunk_is_shown_once() -> None:
    assert run([(0, "a"), (1, "b"), (1, "b"), (2, "c")], "abc") == ["a", "b", "c"]


def test_an_attempt_that_begins_again_with_the_same_words_is_shown_once() -> None:
    pieces = run(
        [(0, "one "), (1, "two "), (0, "one "), (1, "two "), (2, "three")], "one two three"
    )
    assert pieces == ["one ", "two ", "three"]
    assert not any(piece.starts_over for piece in pieces)


def test_an_attempt_with_other_words_starts_over() -> None:
    pieces = run([(0, "local "), (1, "words"), (0, "cloud "), (1, "words")], "cloud words")
    assert pieces == ["local ", "words", "cloud ", "words"]
    assert [piece.starts_over for piece in pieces] == [False, False, True, False]


def test_a_result_that_differs_from_what_was_shown_replaces_it() -> None:
    assert shown(run([(0, "half an ans")], "another answer")) == "another answer"


def test_a_result_without_text_takes_nothing_back() -> None:
    assert run([(0, "half")], "") == ["half"]


def test_trailing_blanks_that_the_result_lacks_do_not_start_over() -> None:
    assert run([(0, "yes"), (1, "\n")], "yes") == ["yes", "\n"]


@given(
    chunks=st.lists(st.tuples(st.integers(0, 6), st.text("ab ", min_size=1, max_size=3))),
    final=st.text("ab ", min_size=1),
)
def test_whatever_the_chunks_the_result_is_what_stays_shown(
    chunks: list[tuple[int, str]], final: str
) -> None:
    assert shown(run(chunks, final)).rstrip() == final.rstrip()
