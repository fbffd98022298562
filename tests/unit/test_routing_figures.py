"""What is said of rules that send prompts away, from labelled answers alone."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.difficulty import DifficultyModel
from fleet_protocol.confidence import Signs, log_odds_of_wrong
from models.cli import cli
from models.errors import ExitCode
from models.progress import SilentProgress
from models.routing.answers import LEAST_OF_EACH, LabelledAnswer, LabelledAnswersError, read_answers
from models.routing.calibrate import calibrate, hardest, kept_by, threshold
from models.routing.compare import compare_rules
from models.routing.curves import gap_recovered, measure_curve

RIGHT = np.array([True, False, True, False])
ALWAYS = np.array([True, True, True, True])


def drawn(count: int = 2_000, *, seed: int = 3) -> list[LabelledAnswer]:
    """Answers that are wrong with log-odds -5 + 2 x mean + 1.5 x worst."""
    random = np.random.default_rng(seed)
    means, extra = random.exponential(0.5, count), random.exponential(0.5, count)
    wrong = random.random(count) < 1 / (1 + np.exp(5 - 2 * means - 1.5 * (means + extra)))
    return [
        LabelledAnswer(
            prompt=f"question {number}?",
            right=not is_wrong,
            mean=float(mean),
            worst=float(mean + more),
            tokens=10,
        )
        for number, (mean, more, is_wrong) in enumerate(zip(means, extra, wrong, strict=True))
    ]


def test_the_gap_is_recovered_by_what_is_sent_first() -> None:
    best = gap_recovered(np.array([0.1, 0.9, 0.2, 0.8]), RIGHT, ALWAYS)
    worst = gap_recovered(np.array([0.9, 0.1, 0.8, 0.2]), RIGHT, ALWAYS)

    np.testing.assert_allclose(best, [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(worst, [0, 0, 0, 0.5, 1])


def test_prompts_of_one_score_stand_for_their_mean() -> None:
    np.testing.assert_allclose(gap_recovered(np.zeros(4), RIGHT, ALWAYS), [0, 0.25, 0.5, 0.75, 1])


def test_a_cloud_that_is_worse_on_a_prompt_loses_there() -> None:
    there = np.array([False, True, True, True])
    recovered = gap_recovered(np.array([0.9, 0.8, 0.2, 0.1]), RIGHT, there)

    np.testing.assert_allclose(recovered, [0, -1, 0, 0, 1])


def test_a_perfect_rule_and_one_that_knows_nothing() -> None:
    is_right = np.array([True] * 60 + [False] * 40)
    perfect = measure_curve((~is_right).astype(float), is_right, ~np.zeros(100, bool), seed=1)
    nothing = measure_curve(np.zeros(100), is_right, ~np.zeros(100, bool), seed=1)

    assert perfect.auc.value == 1.0
    assert perfect.apgr.value == pytest.approx(0.8)
    assert perfect.cpt_50.value == pytest.approx(0.2)
    assert perfect.cpt_80.value == pytest.approx(0.32)
    assert nothing.apgr.value == pytest.approx(0.5)
    assert nothing.cpt_50.value == pytest.approx(0.5)
    assert perfect.cpt_80.low <= perfect.cpt_80.value <= perfect.cpt_80.high


def test_the_threshold_keeps_as_much_as_the_error_rate_allows() -> None:
    trusted = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    is_wrong = np.array([False, False, False, True, True])

    assert threshold(trusted, is_wrong, error_rate=0.25) == 0.7
    assert threshold(trusted, is_wrong, error_rate=0.4) == 0.6
    assert threshold(trusted, is_wrong, error_rate=0.01) == 1.0


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=1),
    st.floats(0.01, 0.5),
)
def test_what_is_kept_never_has_more_wrong_ones_than_allowed(
    answers: list[tuple[float, bool]], error_rate: float
) -> None:
    trusted = np.array([confidence for confidence, _ in answers])
    is_wrong = np.array([wrong for _, wrong in answers])

    least = threshold(trusted, is_wrong, error_rate=error_rate)

    assert kept_by(trusted, is_wrong, least).wrong <= error_rate


def test_a_calibration_finds_the_odds_that_answers_were_drawn_with() -> None:
    routing = calibrate(drawn(8_000), error_rate=0.05, model="tiny", progress=SilentProgress())

    fitted = routing.calibration
    assert fitted is not None
    assert fitted.mean == pytest.approx(2.0, abs=0.3)
    assert fitted.worst == pytest.approx(1.5, abs=0.3)
    assert log_odds_of_wrong(Signs(0, 0, 0), fitted) == pytest.approx(-5.0, abs=0.3)
    assert fitted.repeated == 0.0
    assert fitted.values is None
    assert fitted.kept_wrong_share == pytest.approx(0.05, abs=0.01)
    assert 0 < routing.min_confidence < 1
    # The prompts say nothing: all are tried.
    assert (routing.difficulty, routing.max_difficulty) == (None, 1.0)


def of_both_kinds(count: int = 240) -> list[LabelledAnswer]:
    """Words as `drawn`; of values, only the mean says anything: -3 + 8 x mean."""
    random = np.random.default_rng(5)
    means = random.exponential(0.5, count)
    wrong = random.random(count) < 1 / (1 + np.exp(3 - 8 * means))
    values = [
        LabelledAnswer(
            prompt=f"value {number}?",
            right=not is_wrong,
            value=True,
            mean=float(mean),
            worst=float(mean + random.exponential(0.5)),
        )
        for number, (mean, is_wrong) in enumerate(zip(means, wrong, strict=True))
    ]
    return [*(msgspec.structs.replace(answer, value=False) for answer in drawn(count)), *values]


def test_values_and_words_are_fitted_apart() -> None:
    answers = of_both_kinds()
    routing = calibrate(answers, error_rate=0.1, model="tiny", progress=SilentProgress())

    fitted = routing.calibration
    assert fitted is not None
    assert fitted.values is not None
    assert fitted.values.mean > 2 * fitted.mean
    assert fitted.values.worst < fitted.worst
    # Without a word on the kind all are weighed alike.
    alike = [msgspec.structs.replace(answer, value=None) for answer in answers]
    apart, together = (
        compare_rules(same, error_rate=0.1).rules["confidence"].curve.auc.value
        for same in (answers, alike)
    )
    assert together < apart


def test_too_few_values_are_weighed_with_the_words() -> None:
    answers = [
        msgspec.structs.replace(answer, value=number < LEAST_OF_EACH)
        for number, answer in enumerate(drawn(200))
    ]
    routing = calibrate(answers, error_rate=0.1, model="tiny", progress=SilentProgress())
    assert routing.calibration is not None
    assert routing.calibration.values is None


def test_a_sign_that_would_lower_doubt_is_left_out() -> None:
    answers = [
        msgspec.structs.replace(answer, mean=2.0 - min(2.0, answer.mean or 0.0))
        for answer in drawn(200)
    ]
    routing = calibrate(answers, error_rate=0.1, model="tiny", progress=SilentProgress())
    assert routing.calibration is not None
    assert routing.calibration.mean == 0.0
    assert routing.calibration.worst > 0
    assert routing.calibration.may_bound


def test_prompts_that_are_answered_wrongly_for_their_looks_are_not_tried() -> None:
    story = (
        "If a farmer has {n} cows, sells half of them, then buys 7 more twice, how many are left?"
    )
    hard = [
        LabelledAnswer(prompt=story.format(n=n), right=n % 100 == 99, mean=0.3, worst=0.5)
        for n in range(300)
    ]
    answers = [*drawn(600), *hard]

    routing = calibrate(answers, error_rate=0.2, model="tiny", progress=SilentProgress())

    assert routing.difficulty is not None
    assert routing.calibration is not None
    assert 590 <= routing.calibration.answers <= 620
    model = DifficultyModel(routing.difficulty)
    assert model.predict(story.format(n=999)) > routing.max_difficulty
    assert model.predict("question 3?") < routing.max_difficulty


def test_hardly_a_right_answer_is_given_away() -> None:
    hardness = np.linspace(0, 1, 200)
    is_wrong = hardness > 0.7

    assert hardest(hardness, is_wrong) == pytest.approx(0.7, abs=0.01)
    assert hardest(hardness[::-1], is_wrong) == 1.0


def test_refusals_leave_first_and_teach_the_thresholds_nothing() -> None:
    answers = drawn(600)
    refused = [
        LabelledAnswer(prompt=f"too hard {n}", right=False, refused=True, mean=0.0, worst=0.0)
        for n in range(80)
    ]

    report = compare_rules([*answers, *refused], error_rate=0.2)
    alone, with_them = (
        calibrate(some, error_rate=0.2, model="tiny", progress=SilentProgress())
        for some in (answers, [*answers, *refused])
    )

    assert alone == with_them
    # All 80 leave before anything else does: no kept one is a refusal.
    kept = report.rules["confidence"].kept
    assert kept.wrong == pytest.approx(0.2, abs=0.05)
    assert report.rules["confidence"].curve.auc.value > 0.75


def test_rules_are_compared_on_answers_left_out() -> None:
    report = compare_rules(drawn(), error_rate=0.1)

    rules = report.rules
    assert rules["confidence"].curve.auc.value > 0.7
    assert rules["random"].curve.auc.value == pytest.approx(0.5, abs=0.06)
    # The prompts say nothing here, and none is long.
    assert rules["prompt"].curve.auc.value == pytest.approx(0.5, abs=0.06)
    assert rules["length >= 512"].curve.auc.value == 0.5
    kept = rules["confidence"].kept
    assert kept.wrong == pytest.approx(0.1, abs=0.03)
    assert rules["confidence"].tokens_in_vain == pytest.approx(1 - kept.all, abs=1e-3)
    assert rules["prompt"].tokens_in_vain == 0.0


def test_answers_are_read_from_columns_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    rows = [f'"why, number {number}?",{number % 2},1' for number in range(120)]
    path.write_text("\n".join(["prompt,weak,strong", *rows]))

    answers = read_answers(path, right_column="weak", strong_column="strong")

    assert [answer.right for answer in answers[:3]] == [False, True, False]
    assert answers[0].prompt == "why, number 0?"
    assert "confidence" not in compare_rules(answers, error_rate=0.1).rules
    with pytest.raises(LabelledAnswersError, match="signs of doubt"):
        calibrate(answers, error_rate=0.1, model="tiny", progress=SilentProgress())


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('{"prompt": "a", "right": "perhaps"}', "row 1"),
        ('{"prompt": "a"', "cannot be read"),
        ('{"prompt": "a", "right": true, "mean": -1, "worst": 0}', "row 1"),
        ('{"prompt": "a", "right": true}', "1 answers, 1 of them right"),
    ],
)
def test_what_is_no_labelled_answer_is_refused_by_its_row(
    tmp_path: Path, lines: str, what: str
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(lines)

    result = CliRunner().invoke(cli, ["evaluate-router", "--data", str(path), "--json"])

    assert result.exit_code == ExitCode.CONFIG
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "bad_labelled_answers"
    assert what in error["message"]
