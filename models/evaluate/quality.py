"""How far a graph's predictions are from those of the weights it came from, on running text."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from models.progress import Progress
from models.proof.runner import GraphRunner, log_softmax

PASSAGE_TOKENS: Final = 192
"""Text is read in pieces of at most so many tokens; each begins without a context."""


class TextQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions on a text nobody trained on.

    Attributes:
        positions: At which distributions were compared.
        perplexity: exp(mean negative log-likelihood of each next token); lower is better.
        perplexity_fp32: Of the unquantised weights.
        mean_kl_nats: Kullback-Leibler divergence of the graph from the unquantised weights.
        top1_share: Share of positions with the same most probable token, 0..1.
    """

    positions: int
    perplexity: float
    perplexity_fp32: float
    mean_kl_nats: float
    top1_share: float


def passage_text() -> str:
    """Return the text that perplexity is measured on; it was written for this purpose."""
    return (files("models.evaluate") / "passage.txt").read_text("utf-8")


def passage_tokens(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Cut a text into pieces at its paragraphs, and those where they are too long."""
    pieces: list[list[int]] = []
    for paragraph in text.split("\n\n"):
        ids = list(tokenizer.encode(paragraph.strip(), add_special_tokens=False).ids)
        pieces += [ids[at : at + PASSAGE_TOKENS] for at in range(0, len(ids), PASSAGE_TOKENS)]
    return [piece for piece in pieces if len(piece) > 1]


def compare_on_text(
    graph: GraphRunner, exact: GraphRunner, pieces: list[list[int]], *, progress: Progress
) -> TextQuality:
    """Compare two graphs of one vocabulary; both need room for a piece of text."""
    losses: list[npt.NDArray[np.float64]] = []
    losses_fp32: list[npt.NDArray[np.float64]] = []
    divergences: list[npt.NDArray[np.float64]] = []
    agreed: list[npt.NDArray[np.bool_]] = []
    for done, piece in enumerate(pieces):
        progress.advance(done, len(pieces))
        ours, truth = _log_probabilities(graph, piece), _log_probabilities(exact, piece)
        losses.append(_loss(ours, piece))
        losses_fp32.append(_loss(truth, piece))
        divergences.append((np.exp(truth) * (truth - ours)).sum(axis=-1))
        agreed.append(truth.argmax(axis=-1) == ours.argmax(axis=-1))
    return TextQuality(
        positions=sum(len(piece) for piece in pieces),
        perplexity=round(float(np.exp(np.concatenate(losses).mean())), 3),
        perplexity_fp32=round(float(np.exp(np.concatenate(losses_fp32).mean())), 3),
        mean_kl_nats=round(float(np.concatenate(divergences).mean()), 5),
        top1_share=round(float(np.concatenate(agreed).mean()), 4),
    )


def _log_probabilities(runner: GraphRunner, piece: list[int]) -> npt.NDArray[np.float64]:
    """[tokens, vocab] of what follows each token."""
    return log_softmax(runner.read(np.array([piece], np.int64), [0], logit_tokens=len(piece))[0])


def _loss(ahead: npt.NDArray[np.float64], piece: list[int]) -> npt.NDArray[np.float64]:
    """Negative log-likelihood of every token but the first."""
    return np.asarray(-ahead[np.arange(len(piece) - 1), piece[1:]])
