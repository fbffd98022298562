"""Answers held to the suite's own schemas, as a worker does it on request.

A worker has an adapter of its own for the same library; the factory stands on no program.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import Float32Array
from models.errors import CheckpointError

if TYPE_CHECKING:
    import llguidance

# One form of JSON only, that of `json.dumps`: the same as on a board.
_JSON_STYLE: Final[Any] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}


class SchemaGuides:
    """Makes guides for the vocabulary of one model."""

    def __init__(self, tokenizer_json: Path, *, vocab: int, stops: tuple[int, ...]) -> None:
        # Loaded with the first use: evaluating without schemas does not need it.
        import llguidance  # noqa: PLC0415 - see above

        self._llguidance = llguidance
        self._tokenizer = llguidance.LLTokenizer(
            str(tokenizer_json), n_vocab=vocab, eos_token=list(stops)
        )
        self._vocab = vocab

    def guide(self, schema: dict[str, Any]) -> SchemaGuide:
        """Return a guide at the beginning of an answer; raises CheckpointError."""
        grammar = self._llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE)
        matcher = self._llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        return SchemaGuide(matcher, vocab=self._vocab)


class SchemaGuide:
    """Keeps one answer within its schema: a `Guide`."""

    hidden_tokens = 0

    def __init__(self, matcher: llguidance.LLMatcher, *, vocab: int) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._mask: npt.NDArray[np.int32] = np.zeros((vocab + 31) // 32, np.int32)
        self._check()

    def allow(self, logits: Float32Array) -> None:
        """Set forbidden tokens to -inf, in place."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        allowed = np.unpackbits(self._mask.view(np.uint8), count=self._vocab, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise CheckpointError(
                f"an answer cannot be held to its schema: {self._matcher.get_error()}",
                hint="the tokenizer or the item's schema is not sound",
            )
