"""Fit a difficulty model, assess it on prompts left out, and put it into a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np

from fleet_protocol.manifest import DifficultyManifest, DifficultyQuality
from fleet_protocol.prompt_features import FEATURE_NAMES, FEATURE_VERSION, prompt_features
from models.cache import hash_key
from models.difficulty.assess import (
    assign_folds,
    auc_intervals,
    brier,
    calibration_error,
    probabilities,
)
from models.difficulty.data import Labelled, hash_rows
from models.difficulty.fit import (
    BoolArray,
    Float64Array,
    Folds,
    choose_strength,
    fit_logistic,
    left_out,
)
from models.progress import Progress

_FEATURES: Final = len(FEATURE_NAMES)
_LENGTH: Final = FEATURE_NAMES.index("log_chars")
# One feature needs no regularisation, only a number that keeps the equations solvable.
_LOOSE: Final = 1e-3
# Enough for probabilities, and the same on every CPU.
_DIGITS: Final = 6


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """The prompts' embeddings [rows, dimensions], and the artefact they are from."""

    name: str
    version: str
    vectors: Float64Array


class FitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a difficulty model is fitted.

    Attributes:
        name: Of the artefact.
        model: Whose answers were labelled; None: not said.
        folds: Into which the rows are divided, to predict each from the others.
        seed: Of the folds, the resampling and the random baseline.
    """

    name: str = "difficulty"
    model: str | None = None
    folds: Annotated[int, msgspec.Meta(ge=3, le=20)] = 5
    seed: int = 7


class Fitted(NamedTuple):
    """A difficulty model, and what it is judged by.

    Attributes:
        left_out: Each row's probability of a wrong answer, by a fit that has not seen it.
    """

    manifest: DifficultyManifest
    left_out: Float64Array


def fit_difficulty(
    labelled: Sequence[Labelled],
    settings: FitSettings,
    progress: Progress,
    *,
    embedded: Embedded | None = None,
) -> Fitted:
    """Fit on all rows; what the manifest says of its worth is from rows left out of other fits."""
    progress.step("features")
    is_wrong = np.array([not row.is_right for row in labelled], np.bool_)
    labels = is_wrong.astype(np.float64)
    features = np.array([prompt_features(row.prompt) for row in labelled], np.float64)
    rows = features if embedded is None else np.hstack([features, embedded.vectors])
    prompts = [row.prompt for row in labelled]
    folds = assign_folds(prompts, is_wrong, folds=settings.folds, seed=settings.seed)
    progress.step("cross-validate", f"{settings.folds} folds")
    log_odds = _left_out_with_own_strengths(rows, labels, folds, progress)
    slope, offset = _calibrate(log_odds, labels)
    progress.step("assess")
    length = left_out(features[:, [_LENGTH]], labels, folds, strengths=[_LOOSE])
    quality = _assess(log_odds, length, is_wrong, folds, settings)
    progress.step("fit")
    fitted = fit_logistic(rows, labels, strength=choose_strength(rows, labels, folds))
    embedding_weights = fitted.weights[_FEATURES:] / fitted.scales[_FEATURES:]
    data_sha256 = hash_rows(labelled)
    manifest = DifficultyManifest(
        name=settings.name,
        version=f"1.0.0+{_settings_hash(settings, data_sha256, embedded)[:8]}",
        model=settings.model,
        data_sha256=data_sha256,
        feature_version=FEATURE_VERSION,
        features=FEATURE_NAMES,
        means=_rounded(fitted.means[:_FEATURES]),
        scales=_rounded(fitted.scales[:_FEATURES]),
        weights=_rounded(fitted.weights[:_FEATURES]),
        bias=round(fitted.bias, _DIGITS),
        embedding=embedded.name if embedded else None,
        embedding_version=embedded.version if embedded else None,
        embedding_weights=embedding_weights.astype("<f4").tobytes(),
        embedding_bias=round(-float(embedding_weights @ fitted.means[_FEATURES:]), _DIGITS),
        slope=slope,
        offset=offset,
        quality=quality,
    )
    return Fitted(manifest, probabilities(log_odds, slope, offset))


def _left_out_with_own_strengths(
    rows: Float64Array, labels: Float64Array, folds: Folds, progress: Progress
) -> Float64Array:
    """Predict each fold by the others, which also choose their own strength among themselves."""
    count = int(folds.max()) + 1
    strengths: list[float] = []
    for fold in range(count):
        kept = folds != fold
        # The other folds, numbered from 0 again.
        inner = np.where(folds > fold, folds - 1, folds)[kept]
        strengths.append(choose_strength(rows[kept], labels[kept], inner))
        progress.advance(fold + 1, count)
    return left_out(rows, labels, folds, strengths=strengths)


def _calibrate(log_odds: Float64Array, labels: Float64Array) -> tuple[float, float]:
    """Return slope and offset that turn left-out log-odds into probabilities.

    With targets drawn in from 0 and 1. Source: Platt, Probabilistic Outputs for Support Vector
    Machines (1999). Where prompts say nothing, the slope is 0 and every prompt gets the mean.
    """
    wrong = labels.sum()
    right = len(labels) - wrong
    targets = np.where(labels > 0, (wrong + 1) / (wrong + 2), 1 / (right + 2))
    fitted = fit_logistic(log_odds[:, None], targets, strength=_LOOSE)
    slope = float(fitted.weights[0] / fitted.scales[0])
    if slope <= 0:
        return 0.0, round(float(np.log((wrong + 1) / (right + 1))), _DIGITS)
    offset = fitted.bias - slope * float(fitted.means[0])
    return round(slope, _DIGITS), round(offset, _DIGITS)


def _assess(
    log_odds: Float64Array,
    length: Float64Array,
    is_wrong: BoolArray,
    folds: Folds,
    settings: FitSettings,
) -> DifficultyQuality:
    noise = np.random.default_rng(settings.seed).random(len(is_wrong))
    scores = {"model": log_odds, "length": length, "random": noise}
    found = auc_intervals(scores, is_wrong, against="length", seed=settings.seed)
    # The calibration, too, is judged on rows that it was not fitted on.
    predicted = np.zeros(len(is_wrong))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        slope, offset = _calibrate(log_odds[~out], is_wrong[~out].astype(np.float64))
        predicted[out] = probabilities(log_odds[out], slope, offset)
    return DifficultyQuality(
        rows=len(is_wrong),
        wrong_share=round(float(is_wrong.mean()), _DIGITS),
        folds=settings.folds,
        auc=found["model"],
        auc_length=found["length"],
        auc_random=found["random"],
        gain=found["gain:model"],
        brier=brier(predicted, is_wrong),
        calibration_error=calibration_error(predicted, is_wrong),
    )


def _settings_hash(settings: FitSettings, data_sha256: str, embedded: Embedded | None) -> str:
    """Return what tells versions apart: other rows or settings give other numbers."""
    embedding = (embedded.name, embedded.version) if embedded else None
    return hash_key(data_sha256, msgspec.json.encode(settings), FEATURE_VERSION, embedding)


def _rounded(values: Float64Array) -> tuple[float, ...]:
    return tuple(round(float(value), _DIGITS) for value in values)
