"""The sentences that embeddings are judged by: pairs that say the same thing in other words."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import msgspec


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two wordings of one request, question or event, in one language."""

    language: str
    sentence: str
    paraphrase: str


def load_pairs() -> tuple[Pair, ...]:
    """Read the pairs that ship with this package, written for it."""
    text = resources.files("models.embedding").joinpath("sentences.tsv").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple(Pair(language=row[0], sentence=row[1], paraphrase=row[2]) for row in rows)


def sentences_of(pairs: Sequence[Pair]) -> list[str]:
    """Return all sentences: the two of a pair lie beside each other."""
    return [text for pair in pairs for text in (pair.sentence, pair.paraphrase)]
