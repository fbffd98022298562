"""Who works together: admission, chunks of prompts, and rows without gaps."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_worker.core.batching import (
    READING_PATIENCE,
    EngineSettings,
    MemoryPlan,
    Reading,
    RowMove,
    WaitingLine,
    bytes_per_token,
    check_fits,
    close_gap,
    next_chunk,
    next_reading,
    plan_memory,
)
from fleet_protocol.errors import RejectedError
from fleet_protocol.manifest import Architecture

DEFAULT_MODEL = Architecture(layers=30, kv_heads=3, head_dim=64, vocab=49_152)


def take_all(line: WaitingLine) -> list[str]:
    return list(iter(line.take, None))


def test_higher_priority_goes_first_then_who_came_first() -> None:
    line = WaitingLine()
    for name, priority in (("a", 5), ("b", 5), ("urgent", 9), ("c", 5), ("later", 0)):
        line.add(name, priority=priority)
    assert take_all(line) == ["urgent", "a", "b", "c", "later"]


def test_who_was_removed_is_not_taken() -> None:
    line = WaitingLine()
    line.add("a", priority=5)
    line.add("b", priority=5)
    line.remove("a")
    line.remove("nobody")
    assert len(line) == 1
    assert "a" not in line
    assert take_all(line) == ["b"]


def test_who_left_and_came_again_waits_from_then_on() -> None:
    line = WaitingLine()
    line.add("a", priority=5)
    line.add("b", priority=5)
    line.remove("a")
    line.add("a", priority=5)
    assert take_all(line) == ["b", "a"]
    assert len(line) == 0


def test_a_prompt_is_read_in_chunks_that_cover_it_once() -> None:
    chunks = []
    done = 0
    while done < 70:
        chunks.append(next_chunk(done_tokens=done, prompt_tokens=70, chunk_tokens=32))
        done = chunks[-1].end
    assert chunks == [(0, 32), (32, 64), (64, 70)]


@pytest.mark.parametrize(("prompt", "answer"), [(100, 28), (1, 127)])
def test_what_fills_the_context_exactly_fits(prompt: int, answer: int) -> None:
    check_fits(prompt_tokens=prompt, max_tokens=answer, context_tokens=128)


@pytest.mark.parametrize(
    ("prompt", "answer", "code"),
    [(100, 29, "too_long"), (200, 1, "too_long"), (0, 1, "empty_prompt")],
)
def test_what_no_row_can_hold_is_refused(prompt: int, answer: int, code: str) -> None:
    with pytest.raises(RejectedError) as refusal:
        check_fits(prompt_tokens=prompt, max_tokens=answer, context_tokens=128)
    assert refusal.value.code == code


def test_who_is_next_can_be_seen_before_it_is_taken() -> None:
    line = WaitingLine()
    assert line.peek() is None
    line.add("a", priority=5)
    line.add("urgent", priority=9)
    line.remove("urgent")
    assert (line.peek(), line.take(), line.peek()) == ("a", "a", None)


def test_the_last_row_takes_the_free_place() -> None:
    assert close_gap(leaving=1, generating=4, rows=4) == [RowMove(3, 1)]
    assert close_gap(leaving=3, generating=4, rows=4) == []


def test_the_last_row_that_is_read_follows_down() -> None:
    assert close_gap(leaving=0, generating=3, rows=4) == [RowMove(2, 0), RowMove(3, 2)]
    assert close_gap(leaving=2, generating=3, rows=5) == [RowMove(4, 2)]


def test_a_row_that_is_read_leaves_without_touching_those_that_generate() -> None:
    assert close_gap(leaving=2, generating=2, rows=5) == [RowMove(4, 2)]
    assert close_gap(leaving=4, generating=2, rows=5) == []


@given(generating=st.integers(0, 6), reading=st.integers(0, 4), data=st.data())
def test_rows_stay_contiguous_and_nobody_is_overwritten(
    *, generating: int, reading: int, data: st.DataObject
) -> None:
    assume(generating + reading > 0)
    rows = [f"generates-{place}" for place in range(generating)]
    rows += [f"reads-{place}" for place in range(reading)]
    leaving = data.draw(st.integers(0, len(rows) - 1))
    expected = set(rows) - {rows[leaving]}
    for source, target in close_gap(leaving=leaving, generating=generating, rows=len(rows)):
        rows[target] = rows[source]
    rows.pop()
    assert set(rows) == expected
    left = generating - (leaving < generating)
    assert [row.startswith("generates") for row in rows] == [True] * left + [False] * (
        len(rows) - left
    )


def test_the_shortest_prompt_is_read_first_of_equal_ones_the_first() -> None:
    assert next_reading([Reading(5, 40, 0), Reading(5, 8, 0), Reading(5, 8, 0)]) == 1


def test_a_higher_priority_is_read_before_a_shorter_prompt() -> None:
    assert next_reading([Reading(5, 8, 0), Reading(9, 40, 0)]) == 1


def test_a_long_prompt_is_read_among_ever_new_short_ones() -> None:
    left, passed, turns = 64, 0, 0
    while left > 0:
        turns += 1
        if next_reading([Reading(5, left, passed), Reading(5, 8, 0)]) == 0:
            left, passed = left - 8, 0
        else:
            passed += 1
    assert 7 * READING_PATIENCE < turns <= 8 * (READING_PATIENCE + 1)


def test_the_default_model_takes_45_kib_a_token() -> None:
    assert bytes_per_token(DEFAULT_MODEL) == 45 * 1024


def plan(settings: EngineSettings, *, model_tokens: int = 8_192) -> MemoryPlan:
    return plan_memory(settings, model_tokens=model_tokens, architecture=DEFAULT_MODEL)


def test_the_context_is_the_smallest_of_model_settings_and_memory() -> None:
    assert plan(EngineSettings()).context_tokens == 2_048
    assert plan(EngineSettings(), model_tokens=512).context_tokens == 512
    assert plan(EngineSettings(memory_mb=50)).context_tokens == 1_085


def test_one_request_of_the_whole_context_fits_where_no_memory_is_set() -> None:
    assert plan(EngineSettings(max_tokens=4_096)) == (4_096, 4_096, 16)


def test_no_more_is_planned_than_the_rows_can_hold() -> None:
    assert plan(EngineSettings(slots=2, max_tokens=512, memory_mb=900)).running_tokens == 1_024


def test_a_memory_too_small_to_be_useful_is_an_error() -> None:
    with pytest.raises(ValueError, match="5 MB hold 108 tokens"):
        plan(EngineSettings(memory_mb=5))


def test_the_defaults_are_the_tokens_the_docs_say() -> None:
    context_tokens, running_tokens, kept_blocks = plan(EngineSettings())
    assert (context_tokens, running_tokens, kept_blocks * 32) == (2_048, 2_083, 512)
    assert "2,083 tokens of running requests and 512" in " ".join(
        (EngineSettings.__doc__ or "").split()
    )
