"""Sums that a small model writes down instead of guessing: `<<91-37|54>>54`.

A model that was taught to puts the calculation it needs between marks; what stands behind the bar
is not left to it but computed, exactly, and only what stands outside the marks is the answer. The
factory teaches this notation, the worker reads it, so it is kept where both can see it.

Source of the idea: calculation annotations, arXiv 2110.14168, appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final, TypeAlias

OPENING: Final = "<<"
BAR: Final = "|"
CLOSING: Final = ">>"
LONGEST_CHARS: Final = 80
"""An expression longer than that is none."""
SPARE_TOKENS: Final = 64
"""So many tokens of an answer's calculations do not count as its length: nobody sees them."""

_TOKEN: Final = re.compile(r"\s*(\d+(?:\.\d+)?|[-+*/()]|[<>]=?|==)")
_COMPARISONS: Final = frozenset({"<", ">", "<=", ">=", "=="})
_PLACES: Final = 6
_MOST: Final = Fraction(10**15)
_OPENING_BYTES: Final = OPENING.encode()
_FIRST_BYTE: Final = OPENING[:1].encode()
_CLOSING_BYTES: Final = CLOSING.encode()

Value: TypeAlias = Fraction | bool


def calculate(expression: str) -> str | None:
    """Return what an expression comes to: a number of at most six decimals, `yes` or `no`.

    Numbers, + - * / and parentheses, and comparisons of two or of a chain: `2<=9.1<=8`. None if it
    is no such expression, divides by zero, or leaves 10**15.
    """
    if len(expression) > LONGEST_CHARS:
        return None
    tokens = _split(expression)
    if not tokens:
        return None
    try:
        parser = _Parser(tokens)
        value = parser.comparison()
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    if not parser.is_at_end:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if abs(value) > _MOST else write_number(value)


def write_number(value: Fraction) -> str:
    """Return a number with as many decimals as it needs, at most six."""
    units = round(abs(value) * 10**_PLACES)
    whole, decimals = divmod(units, 10**_PLACES)
    text = f"{whole}.{decimals:0{_PLACES}}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and units else text


def annotate(expression: str) -> str:
    """Return an expression between its marks, with its result.

    Raises:
        ValueError: It is none.
    """
    result = calculate(expression)
    if result is None:
        raise ValueError(f"{expression!r} is not a calculation")
    return f"{OPENING}{expression}{BAR}{result}{CLOSING}"


def open_expression(text: str) -> str | None:
    """Return the expression whose bar `text` has just reached; None: no result is due."""
    if not text.endswith(BAR):
        return None
    start = text.rfind(OPENING)
    if start < 0 or CLOSING in text[start + len(OPENING) :]:
        return None
    expression = text[start + len(OPENING) : -len(BAR)]
    return None if BAR in expression else expression


def visible(text: str) -> str:
    """Return an answer without its calculations; one that was not finished is cut off."""
    shown: list[str] = []
    while OPENING in text:
        before, _, rest = text.partition(OPENING)
        shown.append(before)
        text = rest.partition(CLOSING)[2]
    return "".join([*shown, text])


class VisibleText:
    """Lets through what is outside the marks of a text that arrives in pieces.

    Attributes:
        hidden_pieces: Pieces so far that were taken between two marks, the marks included.
    """

    def __init__(self) -> None:
        self.hidden_pieces = 0
        self._held = ""
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether a calculation has begun and not ended."""
        return self._is_open

    def push(self, piece: str) -> str:
        """Take the next piece; return what may be shown now.

        A piece may end in the middle of a mark: its beginning is held until the next one comes.
        """
        if not (self._held or self._is_open or OPENING[0] in piece):
            return piece
        is_hidden = self._is_open
        self._held += piece
        shown: list[str] = []
        while True:
            mark = CLOSING if self._is_open else OPENING
            before, found, rest = self._held.partition(mark)
            if not found:
                break
            if not self._is_open:
                shown.append(before)
            self._is_open = not self._is_open
            self._held = rest
            is_hidden = True
        self.hidden_pieces += is_hidden
        keep = 1 if self._held.endswith(mark[0]) else 0
        if not self._is_open:
            shown.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return "".join(shown)

    def finish(self) -> str:
        """Return what was held in case a mark came, as there will be no more."""
        held, self._held = self._held, ""
        return "" if self._is_open else held


class Calculator:
    """Follows one answer token by token and tells which tokens its calculations make due.

    A result is encoded on its own, with the mark behind it, as in the texts a model was taught
    with. An expression that comes to nothing makes nothing due: the model goes on as it likes.
    """

    def __init__(
        self, *, piece_of: Callable[[int], bytes], encode: Callable[[str], Sequence[int]]
    ) -> None:
        """`piece_of` returns the bytes a token stands for, `encode` the tokens of a text."""
        self._piece_of = piece_of
        self._encode = encode
        self._tail = b""
        self._due: tuple[int, ...] = ()

    @property
    def due(self) -> tuple[int, ...]:
        """Tokens that must come next, in this order; empty: the model chooses."""
        return self._due

    def accept(self, token: int) -> None:
        """Take the next token of the answer; it is the first one that is due, if any is."""
        if self._due:
            self._due = self._due[1:]
            return
        self._tail = _follow(self._tail, self._piece_of(token))
        result = _result_due(self._tail)
        if result is not None:
            self._tail = b""
            self._due = tuple(self._encode(result + CLOSING))

    def free_prefix(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens may come next, up to where a result becomes due.

        Of tokens while a result is due already, how many are its own; nothing is accepted.
        """
        if self._due:
            return count_agreeing(self._due, tokens)
        tail = self._tail
        for count, token in enumerate(tokens, start=1):
            tail = _follow(tail, self._piece_of(token))
            if _result_due(tail) is not None:
                return count
        return len(tokens)


def count_agreeing(due: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many of `tokens`, from the first one on, are the ones that are due."""
    pairs = zip(due, tokens, strict=False)
    differing = (place for place, (wanted, token) in enumerate(pairs) if wanted != token)
    return next(differing, min(len(due), len(tokens)))


def _follow(tail: bytes, piece: bytes) -> bytes:
    """Return what of an answer a calculation may still need: from its last open mark on."""
    if not tail and _FIRST_BYTE not in piece:
        return b""
    text = tail + piece
    start = text.rfind(_OPENING_BYTES)
    is_open = start >= 0 and _CLOSING_BYTES not in text[start + len(_OPENING_BYTES) :]
    if is_open and len(text) - start <= LONGEST_CHARS + len(_OPENING_BYTES + BAR.encode()):
        return text[start:]
    return _FIRST_BYTE if text.endswith(_FIRST_BYTE) else b""


def _result_due(tail: bytes) -> str | None:
    if not tail.endswith(BAR.encode()):
        return None
    expression = open_expression(tail.decode(errors="replace"))
    return None if expression is None else calculate(expression)


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    @property
    def is_at_end(self) -> bool:
        return self._next == len(self._tokens)

    def comparison(self) -> Value:
        values, signs = [self._sum()], []
        while not self.is_at_end and self._tokens[self._next] in _COMPARISONS:
            signs.append(self._take())
            values.append(self._sum())
        if not signs:
            return values[0]
        pairs = zip(values, signs, values[1:], strict=False)
        return all(_holds(left, sign, right) for left, sign, right in pairs)

    def _sum(self) -> Fraction:
        value = self._product()
        while not self.is_at_end and self._tokens[self._next] in {"+", "-"}:
            sign = 1 if self._take() == "+" else -1
            value += sign * self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while not self.is_at_end and self._tokens[self._next] in {"*", "/"}:
            value = value * self._factor() if self._take() == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        part = self._take()
        if part == "-":
            return -self._factor()
        if part == "(":
            value = self._sum()
            if self._take() != ")":
                raise ValueError("unbalanced")
            return value
        return Fraction(part)

    def _take(self) -> str:
        if self.is_at_end:
            raise ValueError("cut off")
        self._next += 1
        return self._tokens[self._next - 1]


def _split(expression: str) -> list[str]:
    """Return the tokens; empty where something else stands between them."""
    tokens, position = [], 0
    while position < len(expression.rstrip()):
        match = _TOKEN.match(expression, position)
        if match is None:
            return []
        tokens.append(match[1])
        position = match.end()
    return tokens


def _holds(left: Fraction, sign: str, right: Fraction) -> bool:
    return {
        "<": left < right,
        ">": left > right,
        "<=": left <= right,
        ">=": left >= right,
        "==": left == right,
    }[sign]
