"""Results of calculations: computed where the model would guess, and put in its mouth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_worker.core.sampling import Float32Array
from fleet_protocol.calculation import Calculator
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


def keep_only(token: int, logits: Float32Array) -> None:
    """Set all logits [vocab] but one to -inf, in place."""
    kept = logits[token]
    logits.fill(-np.inf)
    logits[token] = kept
