"""The routing rule, asked by both sides."""

from __future__ import annotations

import msgspec
import pytest

from fleet_protocol.messages import Escalate, Privacy, Reason
from fleet_protocol.routing import (
    EscalateTo,
    Local,
    Refuse,
    RoutePolicy,
    RouteQuery,
    decide,
    judge,
    least_prompt_tokens,
)

POLICY = RoutePolicy(context_tokens=1_000, max_prompt_tokens=800, min_confidence=0.5)
EASY = RouteQuery(prompt_tokens=20, max_tokens=64)


def varied(**changes: object) -> RouteQuery:
    return msgspec.structs.replace(EASY, **changes)


def test_a_short_supported_prompt_is_answered_locally() -> None:
    assert decide(EASY, POLICY) == Local()


def test_a_job_that_asks_for_the_cloud_gets_it_however_short_it_is() -> None:
    route = decide(varied(escalate=Escalate.ALWAYS), POLICY)
    assert isinstance(route, EscalateTo)
    assert route.reason is Reason.REQUESTED


def test_the_request_comes_before_the_length() -> None:
    route = decide(varied(escalate=Escalate.ALWAYS, prompt_tokens=9_999), POLICY)
    assert isinstance(route, EscalateTo)
    assert route.reason is Reason.REQUESTED


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "fits"),
    [(800, 200, True), (800, 201, False), (801, 1, False), (799, 201, True)],
)
def test_prompt_and_answer_must_fit_the_context_together(
    prompt_tokens: int, max_tokens: int, *, fits: bool
) -> None:
    route = decide(varied(prompt_tokens=prompt_tokens, max_tokens=max_tokens), POLICY)
    assert isinstance(route, Local) is fits
    assert fits or (isinstance(route, EscalateTo) and route.reason is Reason.TOO_LONG)


@pytest.mark.parametrize(
    ("difficulty", "changes", "leaves"),
    [
        (0.9, {}, True),
        (0.5, {}, False),
        (None, {}, False),
        (0.9, {"escalate": Escalate.NEVER}, False),
        (0.9, {"privacy": Privacy.SITE}, False),
    ],
)
def test_what_looks_too_hard_is_not_tried_where_it_may_leave(
    difficulty: float | None, changes: dict[str, object], *, leaves: bool
) -> None:
    policy = msgspec.structs.replace(POLICY, max_difficulty=0.5)
    route = decide(varied(difficulty=difficulty, **changes), policy)
    assert isinstance(route, EscalateTo) is leaves
    assert not leaves or (isinstance(route, EscalateTo) and route.reason is Reason.COMPLEX)


def test_without_a_prompt_limit_the_context_alone_decides() -> None:
    policy = RoutePolicy(context_tokens=1_000)
    assert decide(varied(prompt_tokens=936), policy) == Local()
    assert decide(varied(prompt_tokens=937), policy) != Local()


def test_a_model_that_is_not_here_is_unsupported() -> None:
    route = decide(varied(supported=False), POLICY)
    assert isinstance(route, EscalateTo)
    assert route.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("changes", "leaves"),
    [
        ({}, True),
        ({"escalate": Escalate.NEVER}, False),
        ({"privacy": Privacy.SITE}, False),
        ({"foreign_script": None}, False),
    ],
)
def test_a_prompt_in_a_foreign_script_is_not_tried_where_it_may_leave(
    changes: dict[str, object], *, leaves: bool
) -> None:
    policy = msgspec.structs.replace(POLICY, languages=("en", "zh"))
    route = decide(varied(**{"foreign_script": "Thai", **changes}), policy)
    assert isinstance(route, EscalateTo) is leaves
    if isinstance(route, EscalateTo):
        assert route.reason is Reason.UNSUPPORTED
        assert route.detail == "the prompt is in Thai script, the model was made for en, zh"


@pytest.mark.parametrize(
    "bound", [{"privacy": Privacy.SITE}, {"escalate": Escalate.NEVER}], ids=["site", "never"]
)
def test_a_job_that_may_not_leave_is_refused_rather_than_escalated(
    bound: dict[str, object],
) -> None:
    assert decide(varied(**bound), POLICY) == Local()
    too_long = decide(varied(prompt_tokens=9_999, **bound), POLICY)
    unsupported = decide(varied(supported=False, **bound), POLICY)
    assert isinstance(too_long, Refuse)
    assert too_long.reason is Reason.TOO_LONG
    assert isinstance(unsupported, Refuse)
    assert unsupported.reason is Reason.UNSUPPORTED


def test_privacy_outranks_a_request_for_the_cloud() -> None:
    query = varied(escalate=Escalate.ALWAYS, privacy=Privacy.SITE)
    assert decide(query, POLICY) == Local()


def test_an_uncertain_answer_is_escalated_with_its_figures() -> None:
    route = judge("maybe", 0.25, EASY, POLICY)
    assert isinstance(route, EscalateTo)
    assert route.reason is Reason.LOW_CONFIDENCE
    assert "0.250" in route.detail


@pytest.mark.parametrize("confidence", [None, 0.5, 0.99])
def test_an_answer_at_or_above_the_threshold_or_without_a_figure_is_kept(
    confidence: float | None,
) -> None:
    assert judge("maybe", confidence, EASY, POLICY) == Local()


@pytest.mark.parametrize("bound", [{"privacy": Privacy.SITE}, {"escalate": Escalate.NEVER}])
def test_an_uncertain_answer_of_a_job_that_may_not_leave_is_kept(bound: dict[str, object]) -> None:
    assert judge("maybe", 0.0, varied(**bound), POLICY) == Local()


def test_the_lower_bound_never_exceeds_a_token_a_character() -> None:
    assert least_prompt_tokens(0) == 0
    assert all(least_prompt_tokens(n) <= n for n in range(100))
    assert least_prompt_tokens(8_000) == 1_000


REFUSING = RoutePolicy(context_tokens=512, refusals=("I cannot answer that here.",))


def test_a_model_that_says_it_should_not_try_hands_the_job_to_the_cloud() -> None:
    route = judge(" I cannot answer that here.\n", 0.99, EASY, REFUSING)

    assert isinstance(route, EscalateTo)
    assert route.reason is Reason.UNSUPPORTED


def test_the_refusal_of_a_job_that_may_not_leave_is_its_answer() -> None:
    bound = varied(privacy=Privacy.SITE)

    assert judge("I cannot answer that here.", 0.99, bound, REFUSING) == Local()


def test_an_answer_that_only_mentions_a_refusal_is_kept() -> None:
    text = "He said: I cannot answer that here."

    assert judge(text, 0.99, EASY, REFUSING) == Local()
