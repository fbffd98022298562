"""Who works together: admission, chunks of prompts, and rows without gaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.batching import (
    EngineSettings,
    RowMove,
    WaitingLine,
    bytes_per_token,
    check_fits,
    close_gap,
    next_chunk,
    plan_context,
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


def test_the_last_row_takes_the_free_place() -> None:
    assert close_gap(leaving=1, generating=4, reading=False) == [RowMove(3, 1)]
    assert close_gap(leaving=3, generating=4, reading=False) == []


def test_the_row_that_is_read_follows_down() -> None:
    assert close_gap(leaving=0, generating=3, reading=True) == [RowMove(2, 0), RowMove(3, 2)]
    assert close_gap(leaving=2, generating=3, reading=True) == [RowMove(3, 2)]


@given(generating=st.integers(1, 9), data=st.data(), reading=st.booleans())
def test_rows_stay_contiguous_and_nobody_is_overwritten(
    *, generating: int, data: st.DataObject, reading: bool
) -> None:
    leaving = data.draw(st.integers(0, generating - 1))
    rows: list[str | None] = [f"row-{place}" for place in range(generating)]
    rows.append("reading" if reading else None)
    gone = rows[leaving]
    for source, target in close_gap(leaving=leaving, generating=generating, reading=reading):
        assert rows[target] is gone or rows[target] in rows[:target] + rows[target + 1 :]
        rows[target] = rows[source]
    left = rows[: generating - 1 + reading]
    expected = {f"row-{place}" for place in range(generating)} - {gone}
    assert set(left) == expected | ({"reading"} if reading else set())
    assert not reading or left[-1] == "reading"


def test_the_default_model_takes_45_kib_a_token() -> None:
    assert bytes_per_token(DEFAULT_MODEL) == 45 * 1024


def test_the_context_is_the_smallest_of_model_settings_and_memory() -> None:
    def plan(settings: EngineSettings, model_tokens: int = 8_192) -> int:
        return plan_context(settings, model_tokens=model_tokens, architecture=DEFAULT_MODEL)

    assert plan(EngineSettings(max_tokens=2_048)) == 2_048
    assert plan(EngineSettings(max_tokens=2_048), model_tokens=512) == 512
    assert plan(EngineSettings(slots=4, max_tokens=2_048, memory_mb=100)) == 542
    assert plan(EngineSettings(slots=2, max_tokens=2_048, memory_mb=1_000)) == 2_048


def test_a_row_too_short_to_be_useful_is_an_error() -> None:
    with pytest.raises(ValueError, match="10 MB hold 4 rows of 54 tokens"):
        plan_context(
            EngineSettings(slots=4, memory_mb=10), model_tokens=8_192, architecture=DEFAULT_MODEL
        )


def test_the_defaults_are_the_megabytes_the_docs_say() -> None:
    settings = EngineSettings()
    bytes_all = settings.slots * settings.max_tokens * bytes_per_token(DEFAULT_MODEL)
    assert round(bytes_all / 1e6) == 377
    assert "377 MB" in (EngineSettings.__doc__ or "")
