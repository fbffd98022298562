"""Labelled answers: what a model said to prompts with a known answer, and how sure it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from fleet_protocol.confidence import Signs, is_value, read_signs
from fleet_protocol.errors import ConfigError
from models.difficulty.data import LabelledDataError, read_rows
from models.evaluate.checks import is_right
from models.evaluate.contestant import ask, contestant_of
from models.progress import Progress
from models.suite import SuiteItem

LEAST_ANSWERS: Final = 100
"""Fewer say nothing about an error rate of some percent."""
LEAST_OF_EACH: Final = 20
_HINT: Final = "write it with `python -m models label`, or name the columns of your own file"


class LabelledAnswersError(ConfigError):
    """The labelled answers cannot be read, or are too few."""

    code = "bad_labelled_answers"


_Root = Annotated[float, msgspec.Meta(ge=0)]


class LabelledAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file.

    Attributes:
        right: Whether the edge model's answer was right; a refusal answers nothing.
        refused: Whether it said that it should not try: such a job leaves for that.
        mean: Sign of doubt, as `fleet_protocol.confidence` has it; so are the next two. None: not
            known.
        value: Whether the answer is a value, not words (`confidence.is_value`); None: not known.
        tokens: Generated.
        strong_right: Whether the model in the cloud answers it rightly; where nobody asked it, it
            is taken to.
    """

    prompt: str
    family: str = ""
    language: str = "en"
    right: bool
    refused: bool = False
    mean: _Root | None = None
    worst: _Root | None = None
    repeated: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    value: bool | None = None
    tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    strong_right: bool = True

    @property
    def signs(self) -> Signs | None:
        """Of the answer; None where they are not known."""
        if self.mean is None or self.worst is None:
            return None
        return Signs(self.mean, self.worst, self.repeated)


def label_answers(
    folder: Path, items: Sequence[SuiteItem], progress: Progress
) -> tuple[LabelledAnswer, ...]:
    """Put the items to an artefact, freely, and judge what it says.

    Raises:
        VerificationError: The folder is no artefact that works.
    """
    contestant = contestant_of(folder)
    answers = ask(contestant, items, progress)
    found = []
    for item, text, said in zip(items, answers.texts, answers.said, strict=True):
        signs = read_signs(text, said.logprobs)
        refused = text.strip() in contestant.manifest.refusals
        found.append(
            LabelledAnswer(
                prompt=item.prompt,
                family=item.family,
                language=item.language,
                right=not refused and is_right(item.check, text),
                refused=refused,
                mean=round(signs.mean, 5),
                worst=round(signs.worst, 5),
                repeated=round(signs.repeated, 5),
                value=is_value(text),
                tokens=len(said.tokens),
            )
        )
    return tuple(found)


def read_answers(
    path: Path, *, right_column: str = "right", strong_column: str = "strong_right"
) -> tuple[LabelledAnswer, ...]:
    """Read a file of JSON lines, or CSV with a header.

    Raises:
        LabelledAnswersError: Unreadable, a line that is none (named), or too few of either kind.
    """
    try:
        found = tuple(
            _answer(row, f"{path.name}, row {number}", right_column, strong_column)
            for number, row in enumerate(read_rows(path), start=1)
        )
    except LabelledDataError as error:
        raise LabelledAnswersError(str(error), hint=_HINT) from error
    right = sum(answer.right for answer in found)
    if len(found) < LEAST_ANSWERS or min(right, len(found) - right) < LEAST_OF_EACH:
        raise LabelledAnswersError(
            f"{path.name} has {len(found)} answers, {right} of them right; at least "
            f"{LEAST_ANSWERS} are needed, and {LEAST_OF_EACH} of each kind",
            hint="label more prompts",
        )
    return found


def _answer(row: Mapping[str, Any], at: str, right: str, strong: str) -> LabelledAnswer:
    named = {"right": row.get(right), "strong_right": row.get(strong, True)}
    try:
        # From CSV, everything is text.
        return msgspec.convert({**row, **named}, LabelledAnswer, strict=False)
    except msgspec.ValidationError as error:
        raise LabelledAnswersError(f"{at}: {error}", hint=_HINT) from error
