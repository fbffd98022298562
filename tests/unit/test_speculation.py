"""What is guessed, and when guessing stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.speculation import (
    LONGEST_PAUSE_TOKENS,
    SHORTEST_PAUSE_TOKENS,
    DraftPace,
    PromptLookup,
)


def test_what_followed_the_same_tokens_is_guessed() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 9, 2, 3])
    assert lookup.draft(3) == (4, 5, 6)
    assert lookup.draft(1) == (4,)


def test_nothing_is_guessed_after_something_new() -> None:
    assert PromptLookup([1, 2, 3, 4]).draft(3) == ()
    assert PromptLookup([]).draft(3) == ()
    assert PromptLookup([1, 1]).draft(3) == ()


def test_the_longer_match_counts_then_the_later_one() -> None:
    assert PromptLookup([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]).draft(1) == (7,)
    assert PromptLookup([2, 3, 7, 5, 2, 3, 8, 2, 3]).draft(1) == (8,)


def test_the_answer_is_guessed_from_too() -> None:
    lookup = PromptLookup([1, 2])
    for token in (5, 6, 7, 5, 6):
        lookup.add(token)
    assert lookup.draft(2) == (7, 5)


@given(tokens=st.lists(st.integers(0, 3), max_size=40), limit=st.integers(1, 7))
def test_a_guess_stands_in_the_text_after_its_last_two_tokens(
    tokens: list[int], limit: int
) -> None:
    guess = PromptLookup(tokens).draft(limit)
    assert len(guess) <= limit
    if guess:
        wanted = [*tokens[-2:], *guess]
        assert any(
            tokens[start : start + len(wanted)] == wanted for start in range(len(tokens) - 2)
        )


def test_good_guesses_become_longer_up_to_the_most() -> None:
    pace = DraftPace(most_tokens=7)
    lengths = []
    for _ in range(4):
        lengths.append(pace.length)
        pace.record(drafted=pace.length, accepted=pace.length)
    assert lengths == [3, 6, 7, 7]


def test_a_half_right_guess_makes_the_next_one_shorter() -> None:
    pace = DraftPace(most_tokens=7)
    for _ in range(3):
        pace.record(drafted=7, accepted=7)
    pace.record(drafted=7, accepted=3)
    assert pace.length == 4


def test_bad_guesses_pause_longer_each_time() -> None:
    pace = DraftPace(most_tokens=7)
    pauses: list[int] = []
    for _ in range(6):
        while pace.length:
            pace.record(drafted=pace.length, accepted=0)
        paused = 0
        while not pace.length:
            pace.pass_token()
            paused += 1
        pauses.append(paused)
    assert pauses[:3] == [SHORTEST_PAUSE_TOKENS, 2 * SHORTEST_PAUSE_TOKENS, 32]
    assert pauses[-1] == LONGEST_PAUSE_TOKENS


@pytest.mark.parametrize("most", [1, 2, 15])
def test_never_more_than_the_most_is_guessed(most: int) -> None:
    pace = DraftPace(most_tokens=most)
    for accepted in (1, 0, 1, 1):
        assert pace.length <= most
        pace.record(drafted=1, accepted=accepted)
