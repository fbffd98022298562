"""Many prompts through one graph: greedy, in several rows, the next prompt where one ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from models.checkpoints.checkpoint import Float32Array
from models.proof.runner import (
    PREFILL_CHUNK_TOKENS,
    GraphRunner,
    Guide,
    counted_tokens,
    log_softmax,
)

ROWS: Final = 16
"""More rows make a step longer, not the suite shorter: eight-bit kernels are busy by then."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt in tokens, and what its answer may be.

    Attributes:
        max_tokens: Longest answer.
        spare_tokens: Of calculations, tokens that do not count as its length.
        guide: Holds the answer to a form, or puts results into it; None: neither.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    spare_tokens: int = 0
    guide: Guide | None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What was said to a question.

    Attributes:
        tokens: Without the stop token.
        logprobs: Natural log-probability of each token, the stop token's included, that there was
            a choice about; under a guide that of the chosen one among all tokens, as a worker has
            it.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class _Row:
    """One row of the cache: what stands in it, and the question it is busy with."""

    def __init__(self) -> None:
        self.cached: list[int] = []
        self.question: Question | None = None
        self.index = -1
        self.answer: list[int] = []
        self.logprobs: list[float] = []

    def begin(self, index: int, question: Question) -> int:
        """Take a question; return how many of its tokens are cached from the one before."""
        self.index, self.question = index, question
        self.answer, self.logprobs = [], []
        # The last one must be read again: its logits choose the first token of the answer.
        known = _common(self.cached, question.tokens[:-1])
        self.cached = list(question.tokens)
        return known


class Answerer:
    """Answers questions over the rows of one runner."""

    def __init__(self, runner: GraphRunner, *, stops: Sequence[int]) -> None:
        self._runner = runner
        self._stops = frozenset(stops)
        self._rows = [_Row() for _ in range(runner.rows)]

    def answer_all(
        self, questions: Sequence[Question], *, advance: Callable[[int, int], None]
    ) -> list[Answered]:
        """Return the answers in the questions' order; tells `advance` (done, total).

        A question that leaves no room for its answer gets an empty one.
        """
        answers = [Answered()] * len(questions)
        fitting = [index for index, question in enumerate(questions) if self._fits(question)]
        # Long ones first, so that the rows are busy to the end; alike ones share a beginning.
        waiting = sorted(
            fitting, key=lambda index: (questions[index].max_tokens, questions[index].tokens)
        )
        done = len(questions) - len(fitting)
        while True:
            for place, row in enumerate(self._rows):
                while row.question is None and waiting:
                    index = waiting.pop()
                    self._prefill(place, index, questions[index])
                    done += self._settle(row, answers)
            if not any(row.question for row in self._rows):
                return answers
            done += self._decode(answers)
            advance(done, len(questions))

    def _fits(self, question: Question) -> bool:
        most = question.max_tokens + question.spare_tokens
        return len(question.tokens) + most <= self._runner.max_len

    def _prefill(self, place: int, index: int, question: Question) -> None:
        row = self._rows[place]
        tokens = question.tokens
        for start in range(row.begin(index, question), len(tokens), PREFILL_CHUNK_TOKENS):
            chunk = np.array([tokens[start : start + PREFILL_CHUNK_TOKENS]], np.int64)
            logits = self._runner.step(chunk, [start], row=place)
        _choose(row, logits[0])

    def _decode(self, answers: list[Answered]) -> int:
        """Add one token to every busy row; return how many answers that finished."""
        busy = 1 + max(place for place, row in enumerate(self._rows) if row.question)
        rows = self._rows[:busy]
        # An idle row among them writes behind what it holds, where nobody looks.
        tokens = [[row.answer[-1] if row.question else 0] for row in rows]
        lengths = [min(len(row.cached), self._runner.max_len - 1) for row in rows]
        logits = self._runner.step(np.array(tokens, np.int64), lengths)
        for row, ahead in zip(rows, logits, strict=True):
            if row.question:
                row.cached.append(row.answer[-1])
                _choose(row, ahead)
        return sum(self._settle(row, answers) for row in rows)

    def _settle(self, row: _Row, answers: list[Answered]) -> bool:
        """Free the row where its answer is complete; tell whether it was."""
        question = row.question
        if question is None:
            return False
        has_stopped = row.answer[-1] in self._stops
        counted = counted_tokens(
            len(row.answer), guide=question.guide, spare_tokens=question.spare_tokens
        )
        if not has_stopped and counted < question.max_tokens:
            return False
        said = row.answer[:-1] if has_stopped else row.answer
        answers[row.index] = Answered(tokens=tuple(said), logprobs=tuple(row.logprobs))
        row.question = None
        return True


def _choose(row: _Row, logits: Float32Array) -> None:
    guide = row.question.guide if row.question else None
    if guide is None:
        token = int(logits.argmax())
        has_choice = True
    else:
        allowed = logits.copy()
        guide.allow(allowed)
        token = int(allowed.argmax())
        has_choice = int(np.isfinite(allowed).sum()) > 1
        guide.accept(token)
    row.answer.append(token)
    if has_choice:
        row.logprobs.append(float(log_softmax(logits)[token]))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens the two begin with alike."""
    for count, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return count
    return min(len(left), len(right))
