"""How far an 8-bit encoder's embeddings are from the unquantised ones, and what both find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fleet_protocol.manifest import EmbeddingQuality
from models.checkpoints.checkpoint import Float32Array
from models.embedding.sentences import Pair, sentences_of
from models.errors import VerificationError

# Blocks of 128 were measured at 0.9990 and 0.9942; a wrong graph is far below.
MIN_MEAN_COSINE: Final = 0.995
MIN_COSINE: Final = 0.98
# Few, so that another CPU writes the same manifest.
_DIGITS: Final = 3

Names: TypeAlias = npt.NDArray[np.str_]
Places: TypeAlias = npt.NDArray[np.intp]


def compare(
    pairs: Sequence[Pair], exact: Float32Array, quantized: Float32Array, tokenizer: Tokenizer
) -> EmbeddingQuality:
    """Compare embeddings [sentences, dimensions] of `sentences_of(pairs)`.

    Likeness between languages is not asked for: every language's sentences are ranked among
    themselves where paraphrases are searched, and all among all for the rank correlation.
    """
    cosines = np.sum(exact * quantized, axis=1)
    upper = np.triu_indices(len(exact), k=1)
    likeness = [(rows @ rows.T) for rows in (exact, quantized)]
    languages = np.repeat([pair.language for pair in pairs], 2)
    return EmbeddingQuality(
        sentences=len(exact),
        mean_cosine=_round(cosines.mean()),
        min_cosine=_round(cosines.min()),
        rank_correlation=_round(_spearman(likeness[0][upper], likeness[1][upper])),
        nearest_agreement=_round(np.mean(_nearest(likeness[0]) == _nearest(likeness[1]))),
        paraphrases_found=_found(quantized, languages),
        paraphrases_found_fp32=_found(exact, languages),
        unknown_tokens=_unknown(pairs, tokenizer),
    )


def require_close(quality: EmbeddingQuality) -> None:
    """Raise VerificationError where the graph is not the checkpoint's."""
    if quality.mean_cosine < MIN_MEAN_COSINE or quality.min_cosine < MIN_COSINE:
        raise VerificationError(
            f"the 8-bit embeddings are at a cosine of {quality.mean_cosine} to the exact ones, "
            f"{quality.min_cosine} at worst; {MIN_MEAN_COSINE} and {MIN_COSINE} are needed",
            hint="choose a smaller block in the recipe",
        )


def _found(rows: Float32Array, languages: Names) -> dict[str, float]:
    """Return by language how often the nearest other sentence is the other half of the pair."""
    found: dict[str, float] = {}
    for language in sorted(set(languages.tolist())):
        among = rows[languages == language]
        mates = np.arange(len(among)) ^ 1
        found[language] = _round(np.mean(_nearest(among @ among.T) == mates))
    return found


def _unknown(pairs: Sequence[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    unknown = tokenizer.token_to_id("[UNK]")
    shares: dict[str, float] = {}
    for language in sorted({pair.language for pair in pairs}):
        texts = sentences_of([pair for pair in pairs if pair.language == language])
        tokens = [
            token
            for text in texts
            for token in tokenizer.encode(text, add_special_tokens=False).ids
        ]
        shares[language] = _round(sum(token == unknown for token in tokens) / max(1, len(tokens)))
    return shares


def _nearest(likeness: Float32Array) -> Places:
    others = likeness - 4 * np.eye(len(likeness), dtype=np.float32)
    return np.asarray(np.argmax(others, axis=1))


def _spearman(left: Float32Array, right: Float32Array) -> float:
    """Return the correlation of the ranks; likenesses hardly ever tie."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), _DIGITS)
