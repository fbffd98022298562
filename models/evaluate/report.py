"""What an evaluation found, as it is stored beside the artefact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from models.evaluate.quality import TextQuality
from models.proof.measure import Measurement

EVALUATION_NAME: Final = "evaluation.json"
EVALUATION_FORMAT: Final = 1
# The normal distribution's two-sided 95 % quantile.
_Z: Final = 1.959964


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How many of the asked were answered rightly.

    Attributes:
        low: Lower end of Wilson's 95 % interval of the share, 0..1.
        high: Upper end.
    """

    asked: int
    right: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Of right answers, 0..1; 0 where nothing was asked."""
        return self.right / self.asked if self.asked else 0.0


def score(right: int, asked: int) -> Score:
    """Return a score with its interval.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if not asked:
        return Score(asked=0, right=0, low=0.0, high=1.0)
    share = right / asked
    spread = _Z * (share * (1 - share) / asked + _Z**2 / (4 * asked**2)) ** 0.5
    middle, scale = share + _Z**2 / (2 * asked), 1 + _Z**2 / asked
    return Score(
        asked=asked,
        right=right,
        low=round(max(0.0, (middle - spread) / scale), 4),
        high=round(min(1.0, (middle + spread) / scale), 4),
    )


class FamilyScore(msgspec.Struct, frozen=True, kw_only=True):
    """The score of one family of tasks in one language."""

    family: str
    language: str
    score: Score


class SuiteResult(msgspec.Struct, frozen=True, kw_only=True):
    """One graph's answers to the suite.

    Attributes:
        model: Name and version, or what the graph is.
        total: Over all items.
        families: By language, then family.
        valid_json: Of answers that should be JSON objects: those that are, whole.
        elapsed_s: For all answers, several rows at a time.
        tokens_per_s: Written in that time, all rows together.
    """

    model: str
    total: Score
    families: tuple[FamilyScore, ...]
    valid_json: Score
    elapsed_s: float
    tokens_per_s: float

    def by_family(self) -> dict[tuple[str, str], Score]:
        """Return scores by (language, family)."""
        return {(row.language, row.family): row.score for row in self.families}


class SizeShare(msgspec.Struct, frozen=True, kw_only=True):
    """The graph with its weights against the same graph in 32-bit floats.

    Attributes:
        graph_bytes: Quantised weights, their scales and everything else that the graph holds.
        fp32_bytes: Of the unquantised graph, the embedding counted once where it is tied.
        share: Of the one in the other, 0..1.
    """

    graph_bytes: int
    fp32_bytes: int
    share: float


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with the answers of two models; `before` is the undistilled one's."""

    family: str
    language: str
    prompt: str
    before: str
    after: str


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A promise about an artefact: the value may be at most the limit.

    Attributes:
        name: Of what was measured.
        value: None: it was not measured in this evaluation, and nothing is claimed.
    """

    name: str
    value: float | None
    limit: float

    @property
    def is_passed(self) -> bool:
        """Whether it was measured and holds."""
        return self.value is not None and self.value <= self.limit


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found about an artefact.

    Attributes:
        artefact_sha256: Over the hashes of its files: what the figures belong to.
        suite_sha256: Of the items that were asked.
        is_whole_suite: The items are all those of the project's own suite.
        answers: The artefact's own.
        constrained: The same for items with a schema, held to it; None: not run.
        fp32: Of the unquantised weights; None: not run.
        base: Of another model, to compare with; None: not run.
        text: None: there was no fp32 graph to compare with; so with `size`.
        measured: Memory and speed of one request at a time on this machine; None: not run.
    """

    format: int = EVALUATION_FORMAT
    model: str
    version: str
    quantization: str
    artefact_sha256: str
    suite_sha256: str
    is_whole_suite: bool
    answers: SuiteResult
    constrained: SuiteResult | None = None
    fp32: SuiteResult | None = None
    base: SuiteResult | None = None
    text: TextQuality | None = None
    size: SizeShare | None = None
    measured: Measurement | None = None
    gates: tuple[Gate, ...] = ()
    examples: tuple[Example, ...] = ()


def family_scores(
    verdicts: Iterable[tuple[str, str, bool]],
) -> tuple[FamilyScore, ...]:
    """Count (language, family, is right) into scores, in the order of language and family."""
    counts: dict[tuple[str, str], list[int]] = {}
    for language, family, right in verdicts:
        counted = counts.setdefault((language, family), [0, 0])
        counted[0] += right
        counted[1] += 1
    return tuple(
        FamilyScore(family=family, language=language, score=score(*counts[language, family]))
        for language, family in sorted(counts)
    )


def shares_by_language(result: SuiteResult) -> Mapping[str, dict[str, float]]:
    """Return the share of right answers by language and family, as a manifest states it."""
    shares: dict[str, dict[str, float]] = {}
    for row in result.families:
        shares.setdefault(row.language, {})[row.family] = round(row.score.share, 4)
    return shares
