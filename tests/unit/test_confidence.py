"""How far an answer may be trusted."""

from __future__ import annotations

from math import exp, log

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.confidence import SHINGLE_CHARS, confidence, is_value, novelty
from fleet_protocol.manifest import Calibration, DoubtWeights

PROSE = (
    "A thermostat measures the temperature of a room and switches the heating on when it falls "
    "below the wanted value, and off again when it is reached."
)
READINGS = (
    '[{"sensor":"a1","celsius":21.5},{"sensor":"b7","celsius":19.0},{"sensor":"c3","celsius":24}]'
)


def test_it_is_the_geometric_mean_of_the_probabilities() -> None:
    assert confidence("yes", [log(0.9), log(0.4)]) == pytest.approx((0.9 * 0.4) ** 0.5)


def test_certain_tokens_give_full_confidence() -> None:
    assert confidence(PROSE, [0.0, 0.0]) == 1.0


@pytest.mark.parametrize(("text", "logprobs"), [("", [0.0]), (" \n", [-0.1]), ("", [])])
def test_no_answer_deserves_no_confidence(text: str, logprobs: list[float]) -> None:
    assert confidence(text, logprobs) == 0.0


def test_an_answer_without_any_choice_cannot_be_wrong() -> None:
    assert confidence("yes", []) == 1.0


def test_a_loop_is_lowered_however_sure_the_model_is() -> None:
    assert confidence("A gentle rain, a gentle soul,\n" * 8, [-0.01] * 80) < 0.3


@pytest.mark.parametrize("text", [PROSE, READINGS, "yes", "ERROR", "1, 2, 3, 4, 5, 6, 7, 8, 9"])
def test_ordinary_answers_are_not_lowered(text: str) -> None:
    assert confidence(text, [-0.1] * 9) == pytest.approx(confidence("yes", [-0.1] * 9))


def test_more_repetition_is_less_novel() -> None:
    shares = [novelty(PROSE * times) for times in (1, 2, 3, 6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0


@given(st.text("ab\u00e9", max_size=200), st.sampled_from(["", PROSE, READINGS]), st.integers(1, 9))
def test_novelty_is_the_share_of_different_pieces(some: str, more: str, times: int) -> None:
    text = (some + more) * times + some[::-1]
    pieces = [text[at : at + SHINGLE_CHARS] for at in range(len(text) - SHINGLE_CHARS + 1)]
    expected = len(set(pieces)) / len(pieces) if len(pieces) > SHINGLE_CHARS else 1.0
    assert novelty(text) == expected


@given(
    st.text(max_size=300),
    st.lists(st.floats(-50.0, 1e-6), max_size=40),
    st.sampled_from([None, "calibrated"]),
)
def test_it_is_between_0_and_1(text: str, logprobs: list[float], kind: str | None) -> None:
    assert 0.0 <= confidence(text, logprobs, kind and calibration(bias=900.0)) <= 1.0


def calibration(bias: float = -2.0, values: DoubtWeights | None = None) -> Calibration:
    return Calibration(
        bias=bias,
        values=values,
        mean=1.5,
        worst=1.0,
        repeated=3.0,
        answers=100,
        right_share=0.8,
        error_rate=0.1,
        kept_right_share=0.9,
        kept_wrong_share=0.1,
        auc=0.8,
    )


def test_calibrated_it_is_the_probability_that_the_logistic_model_gives() -> None:
    # Mean of -log p: (0.01 + 0.49) / 2 = 0.25; the largest: 0.49.
    log_odds = -2.0 + 1.5 * 0.5 + 1.0 * 0.7
    assert confidence("yes", [-0.01, -0.49], calibration()) == pytest.approx(
        1 / (1 + exp(log_odds))
    )


def test_calibrated_one_doubtful_token_or_a_loop_lowers_it() -> None:
    sure = confidence(PROSE, [-0.01] * 30, calibration())
    assert confidence(PROSE, [-0.01] * 29 + [-2.0], calibration()) < sure
    assert confidence("A gentle rain, a gentle soul,\n" * 8, [-0.01] * 30, calibration()) < sure


def test_calibrated_no_answer_deserves_no_confidence_either() -> None:
    assert confidence(" ", [0.0], calibration()) == 0.0


@pytest.mark.parametrize("text", ['{"a": 1}', " [1]", "21", "-4.5 C", "\n+3", "12:30"])
def test_json_and_numbers_are_values(text: str) -> None:
    assert is_value(text)


@pytest.mark.parametrize("text", ["", " ", "-", "- 5 pumps", "yes", "About 5.", '"21"', "二"])
def test_all_else_is_words(text: str) -> None:
    assert not is_value(text)


def test_values_are_weighed_by_their_own_weights_and_words_as_ever() -> None:
    values = DoubtWeights(bias=-4.0, mean=20.0, worst=0.0, repeated=0.0)
    both, alone = calibration(values=values), calibration()
    logprobs = [-0.01, -0.49]

    assert confidence("open", logprobs, both) == confidence("open", logprobs, alone)
    assert confidence("21", logprobs, both) == pytest.approx(1 / (1 + exp(-4.0 + 20.0 * 0.5)))


def test_a_calibration_of_an_earlier_release_has_one_set_of_weights() -> None:
    said = msgspec.json.encode(calibration()).replace(b',"values":null', b"")
    assert b'"values"' not in said
    assert msgspec.json.decode(said, type=Calibration) == calibration()


def test_doubt_that_raises_confidence_bounds_nothing() -> None:
    good = DoubtWeights(bias=-4.0, mean=20.0, worst=0.0, repeated=0.0)
    bad = msgspec.structs.replace(good, worst=-0.1)
    assert calibration(values=good).may_bound
    assert not calibration(values=bad).may_bound
    assert not msgspec.structs.replace(calibration(values=good), mean=-1.0).may_bound
