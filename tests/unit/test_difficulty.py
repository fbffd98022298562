"""Difficulty is scored from a manifest's numbers alone."""

from __future__ import annotations

import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.difficulty import DifficultyModel, DifficultyModelError
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.manifest import AucInterval, DifficultyManifest, DifficultyQuality
from fleet_protocol.prompt_features import (
    FEATURE_NAMES,
    FEATURE_VERSION,
    SCANNED_CHARS,
    prompt_features,
)
from fleet_protocol.routing import RoutePolicy
from tests.unit.session_lab import SessionLab

_COUNT = len(FEATURE_NAMES)
_AUC = AucInterval(value=0.5, low=0.4, high=0.6)
MANIFEST = DifficultyManifest(
    name="difficulty",
    version="1",
    data_sha256="0" * 64,
    feature_version=FEATURE_VERSION,
    features=FEATURE_NAMES,
    means=(1.0,) * _COUNT,
    scales=(2.0,) * _COUNT,
    weights=(0.0,) * _COUNT,
    bias=0.0,
    quality=DifficultyQuality(
        rows=100,
        wrong_share=0.5,
        folds=5,
        auc=_AUC,
        auc_length=_AUC,
        auc_random=_AUC,
        gain=_AUC,
        brier=0.25,
        calibration_error=0.0,
    ),
)


def model(**changes: object) -> DifficultyModel:
    return DifficultyModel(msgspec.structs.replace(MANIFEST, **changes))


def feature(name: str, prompt: str) -> float:
    return prompt_features(prompt)[FEATURE_NAMES.index(name)]


def test_the_formula_is_the_manifests() -> None:
    weights = [0.0] * _COUNT
    weights[0] = 3.0
    found = model(weights=tuple(weights), bias=0.25, slope=0.5, offset=-1.0).predict("seven c")
    log_odds = 0.25 + 3.0 * (math.log(8) - 1.0) / 2.0
    assert found == pytest.approx(1 / (1 + math.exp(-(0.5 * log_odds - 1.0))))


def test_an_embedding_counts_only_where_it_is_known() -> None:
    weights = struct.pack("<2f", 2.0, -1.0)
    scorer = model(embedding="e", embedding_weights=weights, embedding_bias=-0.5)
    assert scorer.predict("hello") == 0.5
    assert scorer.predict("hello", (0.0, 0.0)) == 0.5
    assert scorer.predict("hello", (1.0, 0.0)) == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_an_explanation_names_the_largest_part_first() -> None:
    weights = [0.0] * _COUNT
    weights[FEATURE_NAMES.index("log_numbers")] = 1.0
    weights[FEATURE_NAMES.index("questions")] = -8.0
    parts = model(weights=tuple(weights)).explain("Is 85 above 80?")
    assert parts[0][0] == "questions"
    assert parts[0][1] < 0 < parts[1][1]


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_version": FEATURE_VERSION + 1},
        {"features": FEATURE_NAMES[::-1]},
        {"weights": (1.0,)},
        {"embedding_weights": b"abc"},
    ],
)
def test_numbers_for_other_features_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DifficultyModelError) as caught:
        model(**changes)
    assert caught.value.hint


@given(st.text(max_size=300))
def test_every_text_has_finite_features_and_a_probability(prompt: str) -> None:
    found = prompt_features(prompt)
    assert len(found) == _COUNT
    assert all(math.isfinite(value) for value in found)
    assert 0 <= model(weights=(50.0,) * _COUNT).predict(prompt) <= 1


def test_a_long_prompt_is_looked_at_only_in_part_but_counts_in_full() -> None:
    start = "word " * (SCANNED_CHARS // 5) + "x"
    longer = prompt_features(start + " 7? " * 10_000)
    at_start = prompt_features(start[:SCANNED_CHARS])
    assert longer[0] > at_start[0]
    assert longer[1:] == prompt_features((start + " 7? " * 10_000)[:SCANNED_CHARS])[1:]


@pytest.mark.parametrize(
    ("name", "with_it", "without_it"),
    [
        ("log_numbers", "Add 12 and 7.", "Add them."),
        ("largest_number_digits", "Is 5,000 much?", "Is 5 much?"),
        ("questions", "开门了吗\uff1f", "开门"),
        ("asks_for_reason", "Why is it so?", "It is so."),
        ("asks_for_reason", "为什么会这样", "这样。"),
        ("asks_for_amount", "多少钱", "钱"),
        ("calculation_words", "Each costs twice as much.", "They are red."),
        ("condition_words", "If it rains, close it.", "Close it."),
        ("code_marks", "def f(): return 1", "a function f of one"),
        ("structure_marks", "Reply with JSON only.", "Reply in short."),
        ("names", "Tell Maria and Tom.", "Tell them both."),
        ("han_share", "打开灯", "light on"),
        ("other_script_share", "включи свет", "light on"),
        ("log_sentences", "One. Two. Three.", "One two three."),
        ("log_lines", "one\ntwo", "one two"),
        ("money_and_percent", "It is 5 %.", "It is 5."),
    ],
)
def test_features_see_what_they_are_named_for(name: str, with_it: str, without_it: str) -> None:
    assert feature(name, with_it) > feature(name, without_it)


def test_version_one_of_the_features_means_these_numbers() -> None:
    """A change here without another FEATURE_VERSION would mislead every fitted model."""
    found = prompt_features("Why is pump 3 at 85 %, if Tom set it to 40? Explain in JSON; 写一句。")
    assert FEATURE_VERSION == 1
    assert [round(value, 4) for value in found] == RECORDED


RECORDED = [
    *(4.1897, 2.7081, 1.0986, 2.0794, 0.0, 3.0, 0.0, 1.3863, 1.9345),
    *(0.1765, 0.0, 0.6931, 0.6931, 0.0, 1.0986, 0.0, 0.0, 0.0),
    *(0.6931, 0.0, 0.6931, 0.6931, 0.6931, 0.6931, 0.6931, 0.0462, 0.0),
]


def test_a_worker_does_not_try_what_looks_too_hard() -> None:
    weights = [0.0] * _COUNT
    weights[FEATURE_NAMES.index("writing_words")] = 40.0
    doubtful = model(weights=tuple(weights), means=(0.0,) * _COUNT, bias=-2.0)
    policy = RoutePolicy(context_tokens=100, max_difficulty=0.5)
    lab = SessionLab(policy=policy, difficulty=doubtful)
    essay = m.ChatMessage(role=m.ChatRole.USER, content="Write a report, then a story.")

    easy = lab.start("J1")
    lab.assign("J2", messages=(essay,))
    lab.encode_all()
    kept = lab.start("J3", messages=(essay,), privacy=m.Privacy.SITE)

    assert set(lab.engine) == {easy, kept}
    (escalation,) = lab.told(t.ESCALATE, "J2")
    assert (escalation.reason, escalation.answer) == (m.Reason.COMPLEX, None)
    assert "is above 0.500" in escalation.detail
