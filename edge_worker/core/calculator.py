"""Results of calculations: computed where the model would guess, and put in its mouth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from edge_worker.core.sampling import Float32Array
from fleet_protocol.calculation import CLOSING, OPENING, Calculator, VisibleText
from fleet_protocol.errors import RejectedError


class CalculationGuide:
    """An `OutputGuide` of free text: it forces the results of calculations, and nothing else."""

    def __init__(self, calculator: Calculator) -> None:
        """`calculator` stands at the beginning of the answer; nobody else moves it."""
        self._calculator = calculator

    @property
    def is_complete(self) -> bool:
        """Never: free text may always go on."""
        return False

    @property
    def may_end(self) -> bool:
        """Whether no result is due."""
        return not self._calculator.due

    @property
    def is_free(self) -> bool:
        """Whether no result is due."""
        return not self._calculator.due

    def allow(self, logits: Float32Array) -> None:
        """Leave the first token that is due as the only one, in place."""
        if self._calculator.due:
            keep_only(self._calculator.due[0], logits)

    def accept(self, token: int) -> None:
        """Take a token.

        Raises:
            RejectedError: `output_broken`: another one is due.
        """
        due = self._calculator.due
        if due and token != due[0]:
            raise RejectedError("the result of a calculation is due", code="output_broken")
        self._calculator.accept(token)

    def forced(self) -> tuple[int, ...]:
        """Return the tokens that are due."""
        return self._calculator.due

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens may come before a result is due."""
        return self._calculator.free_prefix(tokens)


class LeadingCalculation:
    """Hides one calculation at the very beginning of a text; behind it, marks are text.

    It is for answers in a form, where the opening mark is a piece of its own, the closing one ends
    a piece, and neither stands in between.

    Attributes:
        hidden_pieces: Pieces of it so far.
        is_open: Whether it has begun and not ended.
    """

    def __init__(self) -> None:
        self.hidden_pieces = 0
        self.is_open = False
        self._is_over = False
        self._tail = ""

    def push(self, piece: str) -> str:
        """Take the next piece; return what may be shown now."""
        if self._is_over or not (self.is_open or piece == OPENING):
            self._is_over = True
            return piece
        self.hidden_pieces += 1
        self._tail = (self._tail + piece)[-len(CLOSING) :]
        self.is_open = self._tail != CLOSING
        self._is_over = not self.is_open
        return ""

    def finish(self) -> str:
        """Return what was held: nothing."""
        return ""


Hiding: TypeAlias = VisibleText | LeadingCalculation
"""What keeps calculations from being shown."""


def keep_only(token: int, logits: Float32Array) -> None:
    """Set all logits [vocab] but one to -inf, in place."""
    kept = logits[token]
    logits.fill(-np.inf)
    logits[token] = kept
