"""Examples as tokens, in batches: what a lesson is made of, with and without torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import msgspec
from tokenizers import Tokenizer

from fleet_protocol.calculation import BAR, CLOSING, OPENING
from models.chat import render_prompt
from models.checkpoint import TextParts
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


class Lessons:
    """Examples as tokens, in batches of about the same length."""

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
        """Yield batches of about `step_tokens` tokens, padding counted."""
        chance = random.Random(self._training.seed)  # noqa: S311 - order, not secrets
        while True:
            pool = [self.lesson(next(examples)) for _ in range(1_024)]
            pool.sort(key=lambda lesson: len(lesson.tokens))
            batches: list[list[Lesson]] = [[]]
            for lesson in pool:
                if (len(batches[-1]) + 1) * len(lesson.tokens) > self._training.step_tokens:
                    batches.append([])
                batches[-1].append(lesson)
            chance.shuffle(batches)
            yield from batches

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
