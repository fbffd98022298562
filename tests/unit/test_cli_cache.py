"""`fleet cache prewarm`: what its lines may be, and how they travel."""

from __future__ import annotations

import json

import pytest

from fleet_cli.commands.cache import _batches, read_answers
from fleet_protocol.codec import encode
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import AdminOp, AdminRequest, Escalate, PrewarmAnswer


def test_a_line_is_a_question_as_a_job_asks_it_with_its_answer() -> None:
    line = {
        "prompt": "Open?",
        "text": "8 to 17",
        "by": "big",
        "max_tokens": 9,
        "escalate": "never",
        "cache_ttl_ms": 5,
        "unknown": 1,
    }
    ((number, answer),) = read_answers([json.dumps(line)])
    assert isinstance(answer, PrewarmAnswer)
    assert (number, answer.text, answer.model) == (1, "8 to 17", "big")
    submit = answer.submit
    assert (submit.prompt, submit.max_tokens, submit.cache_ttl_ms) == ("Open?", 9, 5)
    assert submit.escalate is Escalate.NEVER


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("no json", "not a JSON object"),
        ('{"text": "x"}', "prompt"),
        ('{"prompt": "x"}', "text"),
        ('{"prompt": "x", "text": ""}', "text"),
        ('{"prompt": "x", "text": "y", "max_tokens": 0}', "max_tokens"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_the_others_go_on(line: str, word: str) -> None:
    (first, error), (second, answer) = read_answers([line, "", '{"prompt": "x", "text": "y"}'])
    assert (first, second) == (1, 3)
    assert isinstance(error, RejectedError)
    assert word in str(error)
    assert isinstance(answer, PrewarmAnswer)


def test_answers_travel_in_requests_that_the_dispatcher_reads() -> None:
    long = [json.dumps({"prompt": f"q{i}", "text": "x" * 60_000}) for i in range(7)]
    short = [json.dumps({"prompt": f"q{i}", "text": "y"}) for i in range(250)]
    batches = list(_batches(read_answers([*long, *short])))
    assert sum(map(len, batches)) == 257
    for batch in batches:
        answers = tuple(answer for _, answer in batch if isinstance(answer, PrewarmAnswer))
        request = AdminRequest(req="r" * 16, op=AdminOp.CACHE_PREWARM, answers=answers)
        assert len(encode(request)) <= AdminRequest.MAX_BYTES
