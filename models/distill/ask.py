"""Sequence-level distillation: a teacher's answers become examples. Source: arXiv 1606.07947."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from models.distill.answers import AnswerFile, Said, fault_of
from models.distill.mix import bare_prompt
from models.distill.questions import Question
from models.distill.teacher import Teacher
from models.progress import Progress
from models.suite import load_suite


class AskReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run.

    Attributes:
        out: The file of examples.
        kept: Answers that this run added to it.
        dropped: Answers that this run did not keep, by reason.
        known: Questions that an earlier run had answered.
        held_out: Questions of the held-out suite, which nobody may learn.
        left: Questions that `max_answers` left for another run.
    """

    teacher: str
    out: str
    kept: int
    dropped: dict[str, int]
    known: int
    held_out: int
    left: int


def ask_teacher(
    teacher: Teacher,
    questions: Sequence[Question],
    answers: AnswerFile,
    progress: Progress,
    *,
    max_answers: int | None = None,
) -> AskReport:
    """Ask what is not answered yet; every answer is on the disk before the next one counts.

    Args:
        teacher: Is asked.
        questions: Each once; those of the held-out suite are left out.
        answers: Open; kept and dropped answers go there.
        progress: Counts answers.
        max_answers: Most questions of this run; None: all.

    Raises:
        TeacherError, TeacherUnavailableError: See `Teacher.ask`.
        RecipeError, CannotWriteError: The file is of another kind, or cannot be written.
    """
    held_out = {bare_prompt(item.prompt) for item in load_suite()}
    allowed = [item for item in questions if bare_prompt(item.prompt) not in held_out]
    asked = answers.asked()
    new = [item for item in allowed if (item.system, item.prompt) not in asked]
    due = new if max_answers is None else new[:max_answers]
    dropped: Counter[str] = Counter()
    kept = 0

    def told(question: Question, said: Said) -> None:
        nonlocal kept
        why = fault_of(question, said, refusals=teacher.refusals)
        if why is None:
            answers.keep(question.answered(said.text.strip()))
            kept += 1
        else:
            answers.drop(question, said, why)
            dropped[why.value] += 1
        progress.advance(kept + dropped.total(), len(due))

    progress.step("ask", f"{len(due)} questions, {teacher.name}")
    if due:
        teacher.ask(due, told)
    return AskReport(
        teacher=teacher.name,
        out=str(answers.path),
        kept=kept,
        dropped=dict(sorted(dropped.items())),
        known=len(allowed) - len(new),
        held_out=len(questions) - len(allowed),
        left=len(new) - len(due),
    )
