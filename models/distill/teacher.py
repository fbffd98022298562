"""Who may be asked: any artefact that the factory built, or a provider (see `endpoint`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from tokenizers import Tokenizer

from fleet_protocol.calculation import SPARE_TOKENS
from models.checkpoints.chat import render_prompt
from models.distill.answers import Said
from models.distill.questions import Question
from models.evaluate import run
from models.progress import Progress
from models.proof.calculations import AnswerReader
from models.proof.runner import GraphRunner, counted_tokens
from models.proof.verify import read_manifest

Told: TypeAlias = Callable[[Question, Said], None]
"""Called with every answer, in the order in which they come."""

_GROUP: Final = 64
"""Questions whose answers come together: what an interruption costs."""


class Teacher(Protocol):
    """Answers questions, several at once."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def refusals(self) -> tuple[str, ...]:
        """Answers by which it refuses, beside those that everybody knows."""
        ...

    def ask(self, questions: Sequence[Question], told: Told) -> None:
        """Put all questions.

        Raises:
            TeacherError: It cannot answer as it is set up.
            TeacherUnavailableError: It does not answer now; what was told stays told.
        """
        ...


def conversation(question: Question, instruction: str) -> list[tuple[str, str]]:
    """Return what a teacher is told: the instruction is for it alone, the example has none."""
    turns = [part for part in (instruction, question.system) if part]
    system = [("system", "\n\n".join(turns))] if turns else []
    return [*system, ("user", question.prompt)]


class ArtefactTeacher:
    """An artefact's default graph, greedy, in several rows at once."""

    def __init__(
        self, folder: Path, progress: Progress, *, rows: int, max_tokens: int, instruction: str
    ) -> None:
        """Read its manifest; raises VerificationError where it is none."""
        self._folder = folder
        self._progress = progress
        self._manifest = read_manifest(folder)
        self._rows = rows
        self._max_tokens = max_tokens
        self._instruction = instruction

    @property
    def name(self) -> str:
        """Of the artefact."""
        return f"{self._manifest.name} {self._manifest.version}"

    @property
    def refusals(self) -> tuple[str, ...]:
        """As its manifest has them."""
        return self._manifest.refusals

    def ask(self, questions: Sequence[Question], told: Told) -> None:
        """Put the questions, some groups of them one after the other."""
        manifest = self._manifest
        tokenizer = Tokenizer.from_file(str(self._folder / manifest.tokenizer))
        reader = AnswerReader(tokenizer, calculates=manifest.calculates)
        asked = [self._put(question, tokenizer, reader) for question in questions]
        longest = max(len(put.tokens) + put.max_tokens + put.spare_tokens for put in asked)
        runner = GraphRunner(
            self._folder / manifest.graph,
            manifest.architecture,
            rows=min(self._rows, len(asked)),
            max_len=min(longest, manifest.context_tokens),
        )
        answerer = run.Answerer(runner, stops=manifest.stop_tokens)
        for start in range(0, len(asked), _GROUP):
            group = asked[start : start + _GROUP]
            answers = answerer.answer_all(group, advance=_unseen)
            for question, put, answer in zip(questions[start:], group, answers, strict=False):
                text = str(tokenizer.decode(list(answer.tokens)))
                told(question, Said(text=text, is_cut=_is_cut(put, answer.tokens, runner.max_len)))

    def _put(self, question: Question, tokenizer: Tokenizer, reader: AnswerReader) -> run.Question:
        """Return a question as the rows read it; results of calculations are put in for it."""
        turns = conversation(question, self._instruction)
        prompt = render_prompt(self._manifest.chat_template, turns)
        tokens = tuple(tokenizer.encode(prompt, add_special_tokens=False).ids)
        guide = reader.guide()
        room = self._manifest.context_tokens - len(tokens) - self._max_tokens
        spare = 0 if guide is None else max(0, min(SPARE_TOKENS, room))
        return run.Question(
            tokens=tokens, max_tokens=self._max_tokens, spare_tokens=spare, guide=guide
        )


def _is_cut(put: run.Question, answer: Sequence[int], max_len: int) -> bool:
    """Tell whether an answer did not come to its end; one without room has not begun."""
    counted = counted_tokens(len(answer), guide=put.guide, spare_tokens=put.spare_tokens)
    has_room = len(put.tokens) + put.max_tokens + put.spare_tokens <= max_len
    return counted >= put.max_tokens or not has_room


def _unseen(done: int, total: int) -> None:
    """Progress is counted in answers that are kept, not in a group's."""
