"""What OpenAI's fields become, and what is told of a growing answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.adapters.http.chat_format import (
    failure_of,
    finish_of,
    read_request,
    submit_of,
    whole_answer,
)
from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.told_text import BrokenStreamError, Told, ToldText
from fleet_protocol import messages as m


def submit(**fields: Any) -> m.JobSubmit:
    body = {"model": "fleet", "messages": [{"role": "user", "content": "Warm?"}], **fields}
    return submit_of(read_request(json.dumps(body).encode()), timeout_ms=600_000)


def test_the_fields_of_a_chat_become_those_of_a_job() -> None:
    got = submit(
        model="tiny", max_tokens=9, temperature=0.5, top_p=0.9, seed=-1, stop="\n", stream=True
    )
    assert (got.model, got.max_tokens, got.temperature, got.top_p) == ("tiny", 9, 0.5, 0.9)
    assert (got.seed, got.stop, got.stream, got.deadline_ms) == (2**32 - 1, ("\n",), True, 600_000)


def test_turns_keep_their_roles_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "warm?"}]
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts, "name": "hall"},
    ]
    said = [(turn.role, turn.content) for turn in submit(messages=turns).conversation]
    assert said == [("system", "Be brief."), ("assistant", ""), ("user", "Is it warm?")]


def test_the_newer_name_of_the_limit_goes_first_and_a_huge_one_is_cut() -> None:
    assert submit(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert submit(max_tokens=1_000_000).max_tokens == 4_096
    assert submit().max_tokens == 256


def test_forms_are_held_to() -> None:
    schema = {"type": "object", "properties": {"warm": {"type": "boolean"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert submit(response_format=wanted).output == m.OutputFormat(json_schema=schema)
    assert submit(response_format={"type": "json_object"}).output == m.OutputFormat(json=True)
    assert submit(response_format={"type": "text"}).output is None


def test_what_openai_has_no_word_for_is_a_field_of_the_request() -> None:
    got = submit(escalate="never", privacy="site", priority=8, deadline_ms=500, cache="off")
    assert (got.escalate, got.privacy, got.priority) == ("never", "site", 8)
    assert (got.deadline_ms, got.cache) == (500, "off")


def test_so_are_the_limits_on_its_time_and_what_its_board_must_have() -> None:
    got = submit(start_within_ms=5, attempt_ms=200, lease_ms=3_000, needs={"label": "camera"})
    assert (got.start_within_ms, got.attempt_ms, got.lease_ms) == (5, 200, 3_000)
    assert got.label == "camera"


def test_unknown_fields_are_ignored() -> None:
    assert submit(user="u1", metadata={"a": "b"}, store=True, logit_bias={}) == submit()


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        read_request(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"stop": ["a"] * 9},
        {"response_format": {"type": "json_object"}, "stop": ["a"]},
        {"priority": 10},
        {"escalate": "perhaps"},
    ],
)
def test_what_the_fleet_cannot_do_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        submit(**fields)
    assert refused.value.status == 400


def test_a_cut_answer_says_so() -> None:
    cut = m.JobResult(id="j", status=m.JobStatus.OK, text="It", finish=m.FinishReason.LENGTH)
    assert finish_of(cut) == "length"
    assert whole_answer(cut, asked_model="fleet", at_s=1)["model"] == "fleet"


@pytest.mark.parametrize(
    ("status", "code", "http", "told"),
    [
        (m.JobStatus.EXPIRED, "deadline", 504, "deadline"),
        (m.JobStatus.EXPIRED, "not_started_in_time", 504, "not_started_in_time"),
        (m.JobStatus.CANCELLED, "cancelled", 409, "cancelled"),
        (m.JobStatus.FAILED, "too_long", 400, "context_length_exceeded"),
        (m.JobStatus.FAILED, "no_provider", 502, "no_provider"),
        (m.JobStatus.FAILED, "shed", 503, "busy"),
    ],
)
def test_a_job_without_an_answer_is_an_error(
    status: m.JobStatus, code: str, http: int, told: str
) -> None:
    error = failure_of(m.JobResult(id="j", status=status, code=code))
    assert error is not None
    assert (error.status, error.code, error.headers["x-should-retry"]) == (http, told, "false")


def chunk(index: int, text: str) -> m.TokenChunk:
    return m.TokenChunk(i=index, t=text)


def test_what_stays_is_told_at_once() -> None:
    text = ToldText(drafts=False)
    assert text.grow(chunk(0, "It "), stays=True) == Told("It ")
    assert text.grow(chunk(1, "is."), stays=True) == Told("is.")
    assert text.finish("It is.\n") is None


def test_what_may_be_given_up_waits_for_the_result() -> None:
    text = ToldText(drafts=False)
    assert text.grow(chunk(0, "A guess"), stays=False) is None
    assert text.finish("The truth") == Told("The truth")


def test_an_attempt_that_begins_again_with_the_same_words_is_told_once() -> None:
    text = ToldText(drafts=False)
    text.grow(chunk(0, "It is"), stays=True)
    assert text.grow(chunk(0, "It"), stays=True) is None
    assert text.grow(chunk(1, " is so"), stays=True) == Told(" so")


def test_an_answer_that_turned_out_otherwise_is_not_passed_off_as_the_told_one() -> None:
    text = ToldText(drafts=False)
    text.grow(chunk(0, "It is"), stays=True)
    assert text.grow(chunk(0, "It was"), stays=True) is None
    with pytest.raises(BrokenStreamError):
        text.finish("It was")


CHUNKS = st.tuples(st.integers(0, 3), st.text("ab ", max_size=3), st.booleans())


@given(st.lists(CHUNKS, max_size=12), st.text("ab ", min_size=1, max_size=6), st.booleans())
def test_what_was_told_is_the_answer_or_an_error(
    chunks: list[tuple[int, str, bool]],
    answer: str,
    drafts: bool,  # noqa: FBT001 - hypothesis'
) -> None:
    text, shown = ToldText(drafts=drafts), ""
    told = [text.grow(chunk(i, t), stays=stays) for i, t, stays in chunks]
    try:
        told.append(text.finish(answer))
    except BrokenStreamError:
        assert not drafts
        return
    for piece in told:
        if piece is not None:
            assert drafts or not piece.starts_over
            shown = piece.text if piece.starts_over else shown + piece.text
    assert shown.rstrip() == answer.rstrip()
