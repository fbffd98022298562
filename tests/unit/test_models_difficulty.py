"""A difficulty model learns what there is to learn, and does not boast where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edge_worker.core.difficulty import DifficultyModel
from fleet_protocol.manifest import MANIFEST_NAME, DifficultyManifest
from models.difficulty.assess import assign_folds, auc, auc_intervals, calibration_error
from models.difficulty.build import Embedded, FitSettings, fit_difficulty
from models.difficulty.cli import difficulty
from models.difficulty.data import Labelled, LabelledDataError, read_labelled
from models.difficulty.fit import fit_logistic, sigmoid
from models.progress import SilentProgress

EASY = "Turn the lamp number {} on, please."
HARD = "Why do {} pumps with a pressure of {} bar fail twice as often if each costs {} more?"


def rows(count: int = 120) -> tuple[Labelled, ...]:
    """Prompts of two kinds; the hard kind is answered wrongly nine times in ten."""
    found = []
    for number in range(count):
        is_hard = number % 2 == 1
        prompt = HARD.format(number, number + 3, 2 * number) if is_hard else EASY.format(number)
        is_odd_one = number % 20 in {7, 12}
        found.append(Labelled(prompt=prompt, is_right=is_hard == is_odd_one))
    return tuple(found)


@pytest.fixture(scope="module")
def fitted() -> DifficultyManifest:
    return fit_difficulty(rows(), FitSettings(model="tiny"), SilentProgress()).manifest


def test_it_tells_hard_prompts_from_easy_ones(fitted: DifficultyManifest) -> None:
    model = DifficultyModel(fitted)
    easy, hard = EASY.format(500), HARD.format(501, 504, 1002)
    assert model.predict(easy) < 0.3
    assert model.predict(hard) > 0.7
    assert fitted.quality.auc.value > 0.85
    assert fitted.quality.wrong_share == 0.5
    assert fitted.quality.calibration_error < 0.15


def test_what_it_says_of_chance_is_chance(fitted: DifficultyManifest) -> None:
    random = fitted.quality.auc_random
    assert random.low < 0.5 < random.high


def test_labels_that_no_prompt_explains_give_no_skill() -> None:
    noise = np.random.default_rng(3).random(160) < 0.4
    unexplained = tuple(
        Labelled(prompt=f"Turn lamp {number} on.", is_right=not wrong)
        for number, wrong in enumerate(noise)
    )
    manifest = fit_difficulty(unexplained, FitSettings(), SilentProgress()).manifest
    assert manifest.quality.auc.low < 0.55
    scores = [DifficultyModel(manifest).predict(f"Turn lamp {number} on.") for number in (1, 99)]
    assert scores == pytest.approx([noise.mean()] * 2, abs=0.15)


def test_the_same_rows_give_the_same_bytes(fitted: DifficultyManifest) -> None:
    again = fit_difficulty(rows(), FitSettings(model="tiny"), SilentProgress()).manifest
    assert msgspec.json.encode(again) == msgspec.json.encode(fitted)
    other = fit_difficulty(rows(), FitSettings(model="tiny", seed=8), SilentProgress()).manifest
    assert other.version != fitted.version


def test_embeddings_carry_what_features_cannot_see() -> None:
    labelled = tuple(
        Labelled(prompt=f"Say {number:03d} now.", is_right=number % 2 == 0) for number in range(120)
    )
    angle = np.array([0.3 if row.is_right else 1.2 for row in labelled])
    vectors = np.column_stack([np.cos(angle), np.sin(angle)])
    embedded = Embedded(name="tiny-encoder", version="1.0.0", vectors=vectors)
    manifest = fit_difficulty(labelled, FitSettings(), SilentProgress(), embedded=embedded).manifest
    model = DifficultyModel(manifest)
    assert model.embedding == ("tiny-encoder", "1.0.0")
    assert manifest.quality.auc.value > 0.95
    right, wrong = model.predict("Say 4 now.", vectors[0]), model.predict("Say 4 now.", vectors[1])
    assert right < 0.3
    assert wrong > 0.7
    unknown = model.predict("Say 4 now.")
    assert right < unknown == model.predict("Say 4 now.", [0.0, 0.0]) < wrong


def test_like_prompts_share_a_fold_and_every_fold_has_both_kinds() -> None:
    prompts = [f"Prompt {number}" for number in range(50)]
    is_wrong = np.arange(50) % 5 == 0
    doubled = [*prompts, *(f"  prompt   {number} " for number in range(50))]
    folds = assign_folds(doubled, np.tile(is_wrong, 2), folds=5, seed=7)
    assert (folds[:50] == folds[50:]).all()
    for fold in range(5):
        assert is_wrong[folds[:50] == fold].sum() == 2
    backwards = assign_folds(prompts[::-1], is_wrong[::-1], folds=5, seed=7)
    assert (backwards[::-1] == assign_folds(prompts, is_wrong, folds=5, seed=7)).all()


def test_auc_is_the_share_of_pairs_ranked_rightly() -> None:
    is_wrong = np.array([False, False, True, True])
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), is_wrong) == 0.75
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), is_wrong) == 0.5
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) == 0.5


def test_a_score_gains_nothing_over_itself() -> None:
    random = np.random.default_rng(1)
    is_wrong = random.random(200) < 0.5
    score = is_wrong + random.normal(size=200)
    found = auc_intervals({"length": score, "model": score}, is_wrong, against="length", seed=1)
    gain = found["gain:model"]
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
    assert found["model"].low < found["model"].value < found["model"].high


def test_a_fit_finds_the_weights_that_made_the_labels() -> None:
    random = np.random.default_rng(5)
    design = random.normal(size=(4000, 2)) * [1.0, 50.0]
    labels = (random.random(4000) < sigmoid(design @ [1.5, -0.02] + 0.5)).astype(np.float64)
    model = fit_logistic(design, labels, strength=1e-3)
    np.testing.assert_allclose(model.weights / model.scales, [1.5, -0.02], rtol=0.15)
    predicted = sigmoid(model.log_odds(design))
    assert calibration_error(predicted, labels > 0.5) < 0.03


def test_classes_that_are_apart_do_not_break_the_fit() -> None:
    design = np.concatenate([np.full((50, 1), -1.0), np.full((50, 1), 1.0)])
    model = fit_logistic(design, (design[:, 0] > 0).astype(np.float64), strength=1e-3)
    assert np.isfinite(model.weights).all()


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    return path


def test_the_command_writes_an_artefact_that_a_worker_scores_with(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"prompt": row.prompt, "right": row.is_right} for row in rows()
    ]
    data = write(tmp_path / "labelled.jsonl", lines)
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--model", "tiny"]
    result = CliRunner().invoke(difficulty, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["quality"]["rows"] == 120
    text = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    manifest = msgspec.json.decode(text, type=DifficultyManifest)
    assert manifest.model == "tiny"
    assert 0 < DifficultyModel(manifest).predict("Turn it on.") < 1
    said = CliRunner().invoke(difficulty, arguments)
    assert "length only" in said.stdout


def test_csv_with_other_column_names_is_the_same_data(tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    lines = [f'"{row.prompt}",{int(row.is_right)}' for row in rows()]
    csv.write_text("\n".join(["question,weak_correct", *lines]), "utf-8")
    assert read_labelled(csv, prompt_column="question", right_column="weak_correct") == rows()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "cannot be read"),
        ('{"prompt": "a"}', "row 1"),
        ('{"prompt": "", "right": true}', "row 1"),
        ('{"prompt": "a", "right": "perhaps"}', "row 1"),
        ('{"prompt": "a", "right": true}', "has 1 rows"),
        ("\n".join(['{"prompt": "a", "right": true}'] * 80), "80 of them right"),
    ],
)
def test_unusable_data_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(LabelledDataError, match=says) as caught:
        read_labelled(path)
    assert caught.value.code == "bad_labelled_data"
    assert caught.value.hint
