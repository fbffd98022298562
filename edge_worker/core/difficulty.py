"""How likely the edge model is to answer a prompt wrongly, before anything is generated.

A logistic model over cheap features of the prompt; all its numbers come with an artefact, see
`fleet_protocol.manifest.DifficultyManifest`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import exp
from operator import mul

from fleet_protocol.errors import ConfigError
from fleet_protocol.manifest import DifficultyManifest
from fleet_protocol.prompt_features import FEATURE_NAMES, FEATURE_VERSION, prompt_features

_REFIT_HINT = "fit it again with this release: python -m models difficulty --data ..."


class DifficultyModelError(ConfigError):
    """The model was fitted on other features than this program reads, or is not whole."""

    code = "bad_difficulty_model"


class DifficultyModel:
    """One artefact's numbers, ready to score.

    Attributes:
        embedding: Name and version of the embedding artefact whose vectors `predict` needs; None:
            it needs none.
    """

    def __init__(self, manifest: DifficultyManifest) -> None:
        """Take the numbers over. Raises DifficultyModelError."""
        _check(manifest)
        self._weights, self._bias = _unscaled(manifest)
        self._embedding_weights = array("f", manifest.embedding_weights)
        self._embedding_bias = manifest.embedding_bias
        self._slope, self._offset = manifest.slope, manifest.offset
        self._features = manifest.features
        self.embedding: tuple[str, str] | None = None
        if manifest.embedding is not None:
            self.embedding = (manifest.embedding, manifest.embedding_version or "")

    def predict(self, prompt: str, embedding: Sequence[float] = ()) -> float:
        """Return the probability, 0..1, that the edge model answers the prompt wrongly.

        Args:
            prompt: Its text.
            embedding: Of the same text, where the model needs one; without it, or with one of
                zeros, the features alone decide.
        """
        log_odds = self._bias + sum(map(mul, self._weights, prompt_features(prompt)))
        if self._embedding_weights and any(embedding):
            log_odds += self._embedding_bias + sum(map(mul, self._embedding_weights, embedding))
        return _logistic(self._slope * log_odds + self._offset)

    def explain(self, prompt: str) -> tuple[tuple[str, float], ...]:
        """Return what each feature adds to the log-odds of a wrong answer, largest effect first.

        Only differences between prompts mean something: the bias is not among them.
        """
        parts = map(mul, self._weights, prompt_features(prompt))
        named = zip(self._features, (self._slope * part for part in parts), strict=True)
        return tuple(sorted(named, key=lambda item: -abs(item[1])))


def _unscaled(manifest: DifficultyManifest) -> tuple[tuple[float, ...], float]:
    """Fold means and scales into the weights: one product a feature is left."""
    pairs = zip(manifest.weights, manifest.scales, strict=True)
    weights = tuple(weight / scale for weight, scale in pairs)
    return weights, manifest.bias - sum(map(mul, weights, manifest.means))


def _check(manifest: DifficultyManifest) -> None:
    if manifest.feature_version != FEATURE_VERSION or manifest.features != FEATURE_NAMES:
        raise DifficultyModelError(
            f"the difficulty model {manifest.name} was fitted on version "
            f"{manifest.feature_version} of the features, this program reads {FEATURE_VERSION}",
            hint=_REFIT_HINT,
        )
    sizes = {len(part) for part in (manifest.weights, manifest.means, manifest.scales)}
    if sizes != {len(FEATURE_NAMES)} or len(manifest.embedding_weights) % 4:
        raise DifficultyModelError(
            f"the difficulty model {manifest.name} does not have a weight a feature",
            hint=_REFIT_HINT,
        )


def _logistic(log_odds: float) -> float:
    """Return 1 / (1 + e^-x) without overflow."""
    if log_odds >= 0:
        return 1 / (1 + exp(-log_odds))
    grown = exp(log_odds)
    return grown / (1 + grown)
