"""Answers of a model that writes calculations: results put in, and what of them is shown.

A worker does the same in its own way; the notation and what is due where are shared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from fleet_protocol.calculation import Calculator, VisibleText, visible
from models.checkpoints.checkpoint import Float32Array


class Shown(NamedTuple):
    """What a person sees of an answer.

    Attributes:
        hidden_tokens: Of its tokens, those of calculations.
    """

    text: str
    hidden_tokens: int


class AnswerReader:
    """Turns the tokens of one model's answers into what is shown."""

    def __init__(self, tokenizer: Tokenizer, *, calculates: bool) -> None:
        """`calculates` is what the model's manifest says."""
        self._tokenizer = tokenizer
        self._calculates = calculates
        self._piece = cache(lambda token: str(tokenizer.decode([token])))

    def guide(self) -> CalculationGuide | None:
        """Return what puts the results into one free answer; None: there are none to put in."""
        if not self._calculates:
            return None
        calculator = Calculator(
            piece_of=lambda token: self._piece(token).encode(),
            encode=lambda text: self._tokenizer.encode(text, add_special_tokens=False).ids,
        )
        return CalculationGuide(calculator, self)

    def follow(self, text: VisibleText, token: int) -> None:
        """Take a token as the next one of a text that hides calculations."""
        text.push(self._piece(token))

    def read(self, tokens: Sequence[int]) -> Shown:
        """Return what is shown of an answer."""
        text = str(self._tokenizer.decode(list(tokens)))
        if not self._calculates:
            return Shown(text, 0)
        following = VisibleText()
        for token in tokens:
            self.follow(following, token)
        return Shown(visible(text), following.hidden_pieces)

    def begin_of(self, tokens: Sequence[int], *, most: int) -> tuple[int, ...]:
        """Return the first tokens, at most `most` of them shown; calculations stay whole."""
        if not self._calculates:
            return tuple(tokens[:most])
        following, kept = VisibleText(), 0
        for count, token in enumerate(tokens, start=1):
            self.follow(following, token)
            if count - following.hidden_pieces > most:
                break
            if not following.is_open:
                kept = count
        return tuple(tokens[:kept])


class CalculationGuide:
    """Puts the results into one answer: a `Guide`."""

    def __init__(self, calculator: Calculator, reader: AnswerReader) -> None:
        self._calculator = calculator
        self._reader = reader
        self._text = VisibleText()

    @property
    def hidden_tokens(self) -> int:
        """Tokens of calculations so far."""
        return self._text.hidden_pieces

    def allow(self, logits: Float32Array) -> None:
        """Leave nothing but a result's token where one is due, in place."""
        if self._calculator.due:
            token = self._calculator.due[0]
            kept = logits[token]
            logits.fill(-np.inf)
            logits[token] = kept

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self._calculator.accept(token)
        self._reader.follow(self._text, token)
