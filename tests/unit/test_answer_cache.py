"""What makes two questions the same, and which answers stay in memory."""

from __future__ import annotations

import msgspec
import pytest

from fleet_protocol.answer_cache import (
    CachedAnswer,
    RecentAnswers,
    answer_key,
    build_of,
    is_cacheable,
)
from fleet_protocol.messages import Caching, ChatMessage, Generation, ModelInfo, OutputFormat

ASKED = {"role": "user", "content": "Is hall 7 warm?"}


def key(content: str = "Is hall 7 warm?", *, role: str = "user", **fields: object) -> bytes:
    scope = tuple(str(word) for word in fields.pop("scope", ("north", "tiny")))  # type: ignore[attr-defined]
    turn = msgspec.convert({"role": role, "content": content}, ChatMessage)
    return answer_key((turn,), msgspec.convert(fields, Generation), scope=scope)


@pytest.mark.parametrize(
    "same", ["  Is hall 7 warm?\n", "Is  hall\t7 warm?", "Is\u00a0hall 7 warm?"]
)
def test_blanks_do_not_make_another_question(same: str) -> None:
    assert key(same) == key()


def test_lines_are_kept_with_their_indentation_but_for_blanks_at_their_ends() -> None:
    code = "if hot:\n    warn()\nstop()"
    assert key(f"\n{code}  \n") == key(code) == key("if  hot: \r\n    warn()\t\nstop()")
    assert key("if hot:\n    warn()\n    stop()") != key(code)


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert key("Gerät an?") == key("Gera\u0308t an?")


@pytest.mark.parametrize(
    "other",
    [
        {"content": "is hall 7 warm?"},
        {"content": "Is hall 7\nwarm?"},
        {"content": "Ishall 7 warm?"},
        {"role": "system"},
        {"max_tokens": 65},
        {"temperature": 0.5},
        {"stop": ["."]},
        {"output": {"choices": ["yes", "no"]}},
        {"scope": ("south", "tiny")},
        {"scope": ("northtiny", "")},
    ],
)
def test_whatever_changes_the_answer_makes_another_question(other: dict[str, object]) -> None:
    assert key(**other) != key()  # type: ignore[arg-type]


def test_what_only_sampling_looks_at_counts_only_where_something_is_sampled() -> None:
    assert key(seed=1, top_p=0.5) == key()
    assert key(temperature=0.5, seed=1) != key(temperature=0.5, seed=2)


def test_the_order_of_a_schema_is_part_of_the_form() -> None:
    first = OutputFormat(json_schema={"properties": {"a": {}, "b": {}}})
    second = OutputFormat(json_schema={"properties": {"b": {}, "a": {}}})
    assert key(output=msgspec.to_builtins(first)) != key(output=msgspec.to_builtins(second))


@pytest.mark.parametrize(
    ("fields", "caching", "expected"),
    [
        ({}, Caching.AUTO, True),
        ({"temperature": 0.7}, Caching.AUTO, False),
        ({"temperature": 0.7, "seed": 3}, Caching.AUTO, True),
        ({"temperature": 0.7}, Caching.ALWAYS, True),
        ({}, Caching.OFF, False),
    ],
)
def test_only_answers_that_repeat_themselves_are_kept_unless_asked(
    fields: dict[str, object],
    caching: Caching,
    expected: bool,  # noqa: FBT001 - a case
) -> None:
    assert is_cacheable(msgspec.convert(fields, Generation), caching) is expected


def test_a_new_graph_under_the_same_name_is_another_build() -> None:
    model = ModelInfo(name="tiny", version="1", context_tokens=9, sha256="aa")
    other = msgspec.structs.replace(model, sha256="bb")
    assert build_of(model) != build_of(other)
    assert build_of(model) == build_of(msgspec.structs.replace(model, context_tokens=10))


def answer(
    name: str, *, chars: int = 10, made_at_ms: int = 0, until_at_ms: int = 100
) -> CachedAnswer:
    return CachedAnswer(
        key=name.encode(),
        text="x" * chars,
        model="tiny",
        made_at_ms=made_at_ms,
        until_at_ms=until_at_ms,
    )


def test_the_answer_that_was_not_used_for_longest_makes_room() -> None:
    recent = RecentAnswers(max_bytes=3 * answer("a").size_bytes)
    for name in ("a", "b", "c"):
        recent.put(answer(name))
    recent.find(b"a", 1)
    recent.put(answer("d"))
    assert [name in recent for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert recent.size_bytes == 3 * answer("a").size_bytes


def test_an_answer_put_again_is_there_once() -> None:
    recent = RecentAnswers(max_bytes=10_000)
    recent.put(answer("a"))
    recent.put(answer("a", chars=20))
    assert (len(recent), recent.size_bytes) == (1, answer("a", chars=20).size_bytes)


def test_an_answer_larger_than_the_bound_pushes_nothing_out() -> None:
    recent = RecentAnswers(max_bytes=answer("a").size_bytes)
    recent.put(answer("a"))
    recent.put(answer("b", chars=1_000))
    assert b"a" in recent
    assert b"b" not in recent


@pytest.mark.parametrize(
    ("now_ms", "is_found"), [(49, False), (50, True), (99, True), (100, False)]
)
def test_an_answer_is_given_from_when_it_was_made_until_its_time_is_over(
    now_ms: int,
    is_found: bool,  # noqa: FBT001 - a case
) -> None:
    recent = RecentAnswers(max_bytes=10_000)
    recent.put(answer("a", made_at_ms=50))
    assert (recent.find(b"a", now_ms) is not None) is is_found
    assert (b"a" in recent) is is_found
