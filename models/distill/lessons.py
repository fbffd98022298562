"""Examples as tokens, in batches: what a lesson is made of, with and without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from tokenizers import Tokenizer

from fleet_protocol.calculation import BAR, CLOSING, OPENING
from models.checkpoints.chat import render_prompt
from models.checkpoints.checkpoint import TextParts
from models.distill.example import Example
from models.distill.plan import Training

EVERY_FAMILY: Final = "*"
"""Stands in `Training.keep` for all families."""


class Lesson(msgspec.Struct, frozen=True):
    """An example in tokens.

    Attributes:
        learnt: Which tokens are to be said: the answer's and its end, but not the results of its
            calculations, which a worker puts in itself.
        keep: Whether its distributions are held close to the teacher's.
    """

    tokens: list[int]
    learnt: list[bool]
    keep: bool


def said_and_computed(answer: str) -> list[tuple[str, bool]]:
    """Return the pieces of an answer, and whether the model has to say each of them itself.

    A worker encodes the result of a calculation on its own, so it is a piece of its own here.
    """
    pieces: list[tuple[str, bool]] = []
    while OPENING in answer:
        said, bar, rest = answer.partition(BAR)
        computed, closing, answer = rest.partition(CLOSING)
        pieces += [(said + bar, True), (computed + closing, False)]
    return [*pieces, (answer, True)] if answer else pieces


def split_by_length(batch: Sequence[Lesson], *, padding_share: float = 0.2) -> list[list[Lesson]]:
    """Return a batch in parts of similar lengths, so that little of each is padding.

    Args:
        batch: Lessons of any lengths.
        padding_share: Most of a part's places that may be padding, 0..1.
    """
    parts: list[list[Lesson]] = []
    used = 0
    for lesson in sorted(batch, key=lambda lesson: len(lesson.tokens)):
        length = len(lesson.tokens)
        places = length * (len(parts[-1]) + 1) if parts else 0
        if not parts or used + length < (1 - padding_share) * places:
            parts.append([])
            used = 0
        parts[-1].append(lesson)
        used += length
    return parts


class Lessons:
    """Examples as tokens, in batches."""

    def __init__(self, text: TextParts, training: Training) -> None:
        self._tokenizer = Tokenizer.from_str(text.tokenizer_json)
        self._template = text.chat_template
        self._end = text.stop_tokens[0]
        self._training = training

    def lesson(self, example: Example) -> Lesson:
        """Return an example's tokens, written by the chat template as a worker does."""
        turns = [("user", example.prompt)]
        if example.system is not None:
            turns.insert(0, ("system", example.system))
        prompt = self._encode(render_prompt(self._template, turns))
        tokens, learnt = list(prompt), [False] * len(prompt)
        for text, is_said in said_and_computed(example.answer):
            part = self._encode(text)
            tokens += part
            learnt += [is_said] * len(part)
        keep = not {EVERY_FAMILY, example.family}.isdisjoint(self._training.keep)
        return Lesson([*tokens, self._end], [*learnt, True], keep)

    def batches(self, examples: Iterator[Example]) -> Iterator[list[Lesson]]:
        """Yield batches of about `step_tokens` tokens, as the examples come.

        Families must be mixed within a batch: batches of one length are batches of one family,
        and what one of them teaches the next one spoils.
        """
        batch: list[Lesson] = []
        tokens = 0
        for example in examples:
            lesson = self.lesson(example)
            if batch and tokens + len(lesson.tokens) > self._training.step_tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(lesson)
            tokens += len(lesson.tokens)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
