"""Where a long text is cut so that each part fits a board. Pure text, no jobs.

The dispatcher has no tokenizer, so it estimates. `estimate_tokens` errs on the high side with the
default model's vocabulary (SmolLM2) but for emoji; a board that counts more has the part cut again.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import Final, NamedTuple

from msgspec.structs import replace

from fleet_protocol.messages import ChatMessage, ChatRole, JobSubmit, Split

_SIXTHS: Final = 6
"""Weights are sixths of a token, so that they are whole numbers."""
_LETTER: Final = 2
_OTHER_ASCII: Final = 6
_NOT_ASCII: Final = 12
_WEIGHTS: Final = {
    chr(code): _LETTER if chr(code).isalpha() or chr(code) == " " else _OTHER_ASCII
    for code in range(128)
}

_TEMPLATE_TOKENS: Final = 32
_TURN_TOKENS: Final = 8
"""What a chat template puts around a conversation, and around each of its turns, at most."""

_PARAGRAPH: Final = re.compile(r"\n[ \t\r]*\n\s*")
_LINE: Final = re.compile(r"\n")
_SENTENCE: Final = re.compile(r"""[.!?…]["')\]]*\s+|[。！？；][」』”’）]*""")  # noqa: RUF001  # Chinese
_SPACE: Final = re.compile(r"\s+")
_BORDERS: Final = (_PARAGRAPH, _LINE, _SENTENCE, _SPACE)
"""Where a text is cut, best first."""


class Span(NamedTuple):
    """A stretch of a text, or of a row of answers: from `start` up to, not including, `end`."""

    start: int
    end: int


class LongText(NamedTuple):
    """A submission taken apart.

    Attributes:
        before: Turns that go before each part.
        instruction: What is to be done with the text, where it stands in the same turn; or empty.
        text: What is cut.
    """

    before: tuple[ChatMessage, ...]
    instruction: str
    text: str

    @property
    def frame_tokens(self) -> int:
        """Estimate what each part takes beside its text and its answer."""
        said = sum(estimate_tokens(turn.content) for turn in self.before)
        turns = len(self.before) + 1
        own = estimate_tokens(self.instruction)
        return said + own + _TEMPLATE_TOKENS + turns * _TURN_TOKENS

    def ask(self, submit: JobSubmit, *paragraphs: str) -> JobSubmit:
        """Return the submission with these paragraphs in place of the text, as a job of its own."""
        words = "\n\n".join(said for said in (self.instruction, *paragraphs) if said)
        turn = ChatMessage(role=ChatRole.USER, content=words)
        return replace(
            submit,
            prompt=None,
            messages=(*self.before, turn),
            split=Split.NO,
            stream=False,
            compact=False,
        )


def take_apart(submit: JobSubmit) -> LongText | None:
    """Tell instruction and text apart; None: there is no text to cut.

    The last turn is the text and all turns before it are the instruction. A single turn's first
    paragraph is the instruction, or its first line where it has no empty line.
    """
    *before, last = submit.conversation
    if last.role is not ChatRole.USER:
        return None
    if before:
        return LongText(tuple(before), "", last.content)
    words = last.content.strip()
    border = _PARAGRAPH.search(words) or _LINE.search(words)
    if border is None:
        return None
    return LongText((), words[: border.start()].rstrip(), words[border.end() :].lstrip())


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: rather too many than too few.

    A token for three letters or spaces of ASCII, for each other ASCII character (digits are
    tokens of their own), and two for each character beyond.
    """
    weigh = _WEIGHTS.get
    return -(-sum(weigh(char, _NOT_ASCII) for char in text) // _SIXTHS)


def cut(text: str, *, most_tokens: int) -> list[Span]:
    """Cut a text into stretches of at most so many estimated tokens; joined they are the text.

    At the end of a paragraph, else of a line, of a sentence, of a word: the last one that leaves
    a stretch at least half full.
    """
    weigh = _WEIGHTS.get
    sums = list(accumulate((weigh(char, _NOT_ASCII) for char in text), initial=0))
    most = max(most_tokens * _SIXTHS, _NOT_ASCII)
    spans, start = list[Span](), 0
    while start < len(text):
        end = bisect_right(sums, sums[start] + most) - 1
        if end < len(text):
            end = _border(text, bisect_right(sums, sums[start] + most // 2), end)
        spans.append(Span(start, end))
        start = end
    return spans


def group(sizes: list[int], *, most: int) -> list[Span]:
    """Gather neighbours whose sizes add up to at most `most`, but always two at least.

    So there are fewer groups than sizes, however small `most` is; a last one may be alone.
    """
    spans, start = list[Span](), 0
    while start < len(sizes):
        end, total = start, 0
        while end < len(sizes) and (end - start < 2 or total + sizes[end] <= most):
            total += sizes[end]
            end += 1
        spans.append(Span(start, end))
        start = end
    return spans


def _border(text: str, earliest: int, latest: int) -> int:
    """Return the best place to cut at within these bounds, both included."""
    for kind in _BORDERS:
        # From a little before: a border that began there may end within the bounds.
        ends = [m.end() for m in kind.finditer(text, max(earliest - 8, 0), latest)]
        if ends and ends[-1] >= earliest:
            return ends[-1]
    return latest
