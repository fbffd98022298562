"""When an answer ends, and which of its text may already be shown.

Tokens are pieces of bytes: a character may be spread over several of them, and so may a stop text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

import msgspec

from edge_worker.core.calculator import Hiding
from fleet_protocol.messages import FinishReason

# Looked up once: it goes through the registry of all encodings.
_Decoder: Final = codecs.getincrementaldecoder("utf-8")


class StopRule(msgspec.Struct, frozen=True, kw_only=True):
    """What ends an answer, whichever comes first.

    Attributes:
        tokens: Ids of end-of-answer tokens.
        texts: Texts that end the answer and are not part of it.
        max_tokens: Most tokens to generate, the end-of-answer token included.
        spare_tokens: Of the tokens of calculations, which nobody sees, so many do not count.
    """

    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    max_tokens: int
    spare_tokens: int = 0


class AnswerText:
    """The growing text of one answer.

    `take` is called once per token and returns what may be shown now: whole characters, and none
    that could still turn out to belong to a stop text. Bytes that are no UTF-8 are left out.
    Stop texts are looked for in what is shown.

    Attributes:
        finish: Why the answer ended; None while it grows.
        tokens: Taken so far, those of hidden calculations included.
    """

    def __init__(self, rule: StopRule, *, calculations: Hiding | None = None) -> None:
        """`calculations` hides them; None: their marks are text like any other."""
        self.finish: FinishReason | None = None
        self.tokens = 0
        self._rule = rule
        self._calculations = calculations
        self._decoder = _Decoder(errors="ignore")
        self._shown: list[str] = []
        self._pending = ""

    @property
    def text(self) -> str:
        """All that was shown so far; the whole answer once it is finished."""
        return "".join(self._shown)

    @property
    def most_tokens(self) -> int:
        """Tokens that the answer can come to have, those of calculations included."""
        return self._rule.max_tokens + self._rule.spare_tokens

    @property
    def left_tokens(self) -> int:
        """Most tokens that may still come: a calculation's own are there only while it is open."""
        left = self._rule.max_tokens - self._counted
        if self._calculations is None or not self._calculations.is_open:
            return left
        return self._rule.max_tokens + self._rule.spare_tokens - self.tokens

    @property
    def _counted(self) -> int:
        if self._calculations is None:
            return self.tokens
        return self.tokens - min(self._calculations.hidden_pieces, self._rule.spare_tokens)

    def take(self, token: int, piece: bytes, *, count: int = 1) -> str:
        """Add a token and the bytes it stands for; return the text that may now be shown.

        An end-of-answer token adds no text, whatever its bytes. Several tokens may be given as one
        piece, `count` of them, where nothing but their number can end the answer.
        """
        self.tokens += count
        if token in self._rule.tokens:
            return self._end(FinishReason.STOP)
        text = self._decoder.decode(piece)
        self._pending += self._calculations.push(text) if self._calculations else text
        stops = self._rule.texts
        if stops and first_stop(self._pending, stops) is not None:
            return self._end(FinishReason.STOP)
        if self._counted >= self._rule.max_tokens:
            return self._end(FinishReason.LENGTH)
        held = held_back(self._pending, stops) if stops else 0
        return self._show(len(self._pending) - held)

    def end(self) -> str:
        """End the answer as complete; return the text that was held back."""
        return self._end(FinishReason.STOP)

    def _end(self, finish: FinishReason) -> str:
        # A character cut in two by the end is not shown: the decoder keeps its first bytes.
        if self._calculations is not None:
            self._pending += self._calculations.finish()
        cut = first_stop(self._pending, self._rule.texts)
        self.finish = finish if cut is None else FinishReason.STOP
        return self._show(len(self._pending) if cut is None else cut)

    def _show(self, chars: int) -> str:
        if chars <= 0:
            return ""
        shown, self._pending = self._pending[:chars], self._pending[chars:]
        self._shown.append(shown)
        return shown


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the stop text begins that is complete first, reading character by character.

    That makes the answer the same however its characters are spread over tokens. Of two that are
    complete at the same character the longer one counts.
    """
    found: tuple[int, int] | None = None
    for stop in stops:
        start = text.find(stop)
        if start >= 0:
            end = start + len(stop)
            found = (end, start) if found is None else min(found, (end, start))
    return None if found is None else found[1]


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(len(stop) > size and stop.startswith(tail) for stop in stops):
            return size
    return 0
