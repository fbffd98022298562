"""Texts to embeddings with an artefact's own files, as a worker does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.checkpoints.checkpoint import Float32Array
from models.errors import CheckpointError
from models.proof.runner import open_session


def plain_tokenizer(tokenizer_json: str, *, max_tokens: int) -> Tokenizer:
    """Return the tokenizer cutting at `max_tokens` and padding nothing.

    Stored ones often pad every text to a fixed length, which costs time and changes nothing.
    Raises CheckpointError: not a tokenizer.
    """
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:
        # tokenizers raises no narrower class.
        raise CheckpointError(
            f"the tokenizer cannot be read: {error}", hint="fetch the checkpoint again"
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer


class EncoderRunner:
    """A loaded graph with its tokenizer."""

    def __init__(self, graph: Path, tokenizer: Tokenizer) -> None:
        self._session = open_session(graph)
        self._tokenizer = tokenizer

    def tokens(self, text: str) -> list[int]:
        """Return a text's tokens, the marks at its ends included."""
        return list(self._tokenizer.encode(text).ids)

    def embed(self, texts: Sequence[str], *, batch: int = 1) -> Float32Array:
        """Return embeddings [texts, dimensions] of length 1, `batch` at a time."""
        rows = [self.tokens(text) for text in texts]
        parts = [self._run(rows[at : at + batch]) for at in range(0, len(rows), batch)]
        return np.concatenate(parts)

    def _run(self, rows: Sequence[Sequence[int]]) -> Float32Array:
        lengths = np.array([len(row) for row in rows], np.int32)
        input_ids = np.zeros((len(rows), int(lengths.max())), np.int64)
        for place, row in zip(input_ids, rows, strict=True):
            place[: len(row)] = row
        outputs = self._session.run(None, {"input_ids": input_ids, "lengths": lengths})
        return np.asarray(outputs[0], np.float32)
