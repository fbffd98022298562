"""How each answer is held: to its form, to the results of its calculations, or to both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from edge_worker.adapters.tokenizer import ChatTokenizer
from edge_worker.core.calculator import CalculationGuide, Hiding, LeadingCalculation, keep_only
from edge_worker.core.sampling import Float32Array
from edge_worker.ports import OutputGuide, OutputGuides
from fleet_protocol.calculation import (
    CLOSING,
    OPENING,
    SPARE_TOKENS,
    Calculator,
    VisibleText,
    calculate,
    count_agreeing,
)
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import OutputFormat

_NUMBERS: Final = r"[-+*/().0-9]"
_EXPRESSION: Final = rf"<<{_NUMBERS}{{1,16}}((<=?|>=?|==){_NUMBERS}{{1,12}}){{0,2}}\|"
"""What may stand in front of a form; with its result it takes fewer than `SPARE_TOKENS` tokens."""


class Held(NamedTuple):
    """What one answer is held by.

    Attributes:
        guide: None: it is free.
        hides: Its calculations; None: there are none.
        spare_tokens: So many of their tokens do not count as its length.
    """

    guide: OutputGuide | None
    hides: Hiding | None = None
    spare_tokens: int = 0


class AnswerGuides:
    """Chooses what holds an answer of one model."""

    def __init__(self, forms: OutputGuides, tokenizer: ChatTokenizer, *, calculates: bool) -> None:
        """`calculates` is what the model's manifest says."""
        self._forms = forms
        self._tokenizer = tokenizer
        self._calculates = calculates
        self._mark = tuple(tokenizer.encode_text(OPENING))

    def begin(self, output: OutputFormat | None, *, room_tokens: int) -> Held:
        """Return what holds an answer from its beginning.

        Args:
            output: The form that was asked for.
            room_tokens: Left in the context beside prompt and answer.

        Raises:
            RejectedError: `bad_output_format` or `unsupported_output_format`.
        """
        spare_tokens = min(SPARE_TOKENS, room_tokens)
        if output is not None:
            form = self._forms.guide(output)
            first = self._in_front_of(form, output) if spare_tokens == SPARE_TOKENS else None
            return Held(first, LeadingCalculation(), spare_tokens) if first else Held(form)
        if not self._calculates:
            return Held(None)
        calculator = Calculator(piece_of=self._tokenizer.piece, encode=self._tokenizer.encode_text)
        return Held(CalculationGuide(calculator), VisibleText(), spare_tokens)

    def _in_front_of(self, form: OutputGuide, output: OutputFormat) -> OutputGuide | None:
        """Return a guide that lets a calculation come first; None where none may.

        JSON is taught without one. A form that may begin with the mark itself could not be told
        from a calculation.
        """
        is_short = output.choices is not None or output.regex is not None
        if not self._calculates or not is_short or len(self._mark) != 1:
            return None
        if form.allowed_prefix(self._mark):
            return None
        expression = self._forms.guide(OutputFormat(regex=_EXPRESSION))
        return _CalculationFirst(
            form, expression=expression, tokenizer=self._tokenizer, mark=self._mark[0]
        )


class _CalculationFirst:
    """An `OutputGuide`: a form, and one calculation in front of it where the model begins one."""

    def __init__(
        self, form: OutputGuide, *, expression: OutputGuide, tokenizer: ChatTokenizer, mark: int
    ) -> None:
        self._form = form
        self._expression = expression
        self._tokenizer = tokenizer
        self._mark = mark
        self._is_undecided = True
        self._is_calculating = False
        self._said = b""
        self._due: tuple[int, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self._is_calculating and self._form.is_complete

    @property
    def may_end(self) -> bool:
        return not self._is_calculating and self._form.may_end

    @property
    def is_free(self) -> bool:
        return False

    def allow(self, logits: Float32Array) -> None:
        if self._due:
            keep_only(self._due[0], logits)
        elif self._is_calculating:
            self._expression.allow(logits)
        elif self._is_undecided:
            mark = logits[self._mark]
            self._form.allow(logits)
            # Nobody asked for a calculation: it comes only where the model prefers it to all else.
            if mark > logits.max():
                logits[self._mark] = mark
                keep_only(self._mark, logits)
        else:
            self._form.allow(logits)

    def accept(self, token: int) -> None:
        if self._is_undecided:
            self._is_undecided = False
            self._is_calculating = token == self._mark
        if self._due:
            self._accept_due(token)
        elif self._is_calculating:
            self._expression.accept(token)
            self._said += self._tokenizer.piece(token)
            if self._expression.is_complete:
                # One that comes to nothing is closed as it is: there has to be an answer.
                result = calculate(self._said[len(OPENING) : -1].decode()) or ""
                self._due = tuple(self._tokenizer.encode_text(result + CLOSING))
        else:
            self._form.accept(token)

    def forced(self) -> tuple[int, ...]:
        if self._due or self._is_undecided:
            return self._due
        return self._expression.forced() if self._is_calculating else self._form.forced()

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        if self._due:
            return count_agreeing(self._due, tokens)
        begins = self._is_undecided and tokens[:1] == (self._mark,)
        held = self._expression if self._is_calculating or begins else self._form
        return held.allowed_prefix(tokens)

    def _accept_due(self, token: int) -> None:
        if token != self._due[0]:
            raise RejectedError("the result of a calculation is due", code="output_broken")
        self._due = self._due[1:]
        self._is_calculating = bool(self._due)
