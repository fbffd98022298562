"""A teacher's answers: which are worth learning, and the file in which they are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, TypeVar

import msgspec

from fleet_protocol.calculation import BAR, CLOSING, OPENING, calculate
from models.distill.example import Example
from models.distill.questions import Question
from models.errors import RecipeError, writing

DROPPED_SUFFIX: Final = ".dropped.jsonl"
_REFUSE: Final = "refuse"
# How a chat model begins to refuse.
_REFUSALS: Final = (
    *("i'm sorry", "i am sorry", "sorry,", "i can't", "i cannot", "i'm unable", "i am unable"),
    *("i'm not able", "i am not able", "i don't have access", "as an ai", "as a language model"),
    *("抱歉", "对不起", "很抱歉", "我无法", "我不能", "作为一个", "作为人工智能"),
)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a teacher said.

    Attributes:
        is_cut: It would have said more than it may.
        is_withheld: A filter kept the answer back.
    """

    text: str
    is_cut: bool = False
    is_withheld: bool = False


class Fault(StrEnum):
    """Why an answer is not learnt."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    REFUSAL = "refusal"
    MISCALCULATED = "miscalculated"


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is not learnt, kept so that nobody pays for it again."""

    why: Fault
    prompt: str
    system: str | None
    answer: str


def fault_of(question: Question, said: Said, *, refusals: Sequence[str] = ()) -> Fault | None:
    """Return why an answer is not worth learning; None: it is.

    Args:
        question: A family `refuse` asks for refusals.
        said: The answer.
        refusals: By which this teacher in particular refuses.
    """
    text = said.text.strip()
    if said.is_withheld:
        return Fault.REFUSAL
    if said.is_cut:
        return Fault.TOO_LONG
    if not text:
        return Fault.EMPTY
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    is_refusal = text in refusals or plain.startswith(_REFUSALS)
    if is_refusal and question.family != _REFUSE:
        return Fault.REFUSAL
    return None if _is_computed_right(text) else Fault.MISCALCULATED


def _is_computed_right(text: str) -> bool:
    """Tell whether the results between calculation marks are right, if there are any."""
    while OPENING in text:
        _, _, rest = text.partition(OPENING)
        expression, _, rest = rest.partition(BAR)
        result, closing, text = rest.partition(CLOSING)
        if not closing or calculate(expression) != result:
            return False
    return True


class AnswerFile:
    """Examples, one a line, each written as it comes; a run that was interrupted goes on.

    Dropped answers stand in a file beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = path.with_suffix(DROPPED_SUFFIX)
        self._files: dict[Path, BinaryIO] = {}

    def __enter__(self) -> Self:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.path, self.dropped):
                _mend(path)
                self._files[path] = path.open("ab", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()
        if not self.dropped.stat().st_size:
            self.dropped.unlink()

    def asked(self) -> set[tuple[str | None, str]]:
        """Return (system, prompt) of every question that was answered, well or not.

        Raises:
            RecipeError: A file holds something else.
        """
        answered = {(item.system, item.prompt) for item in _read(self.path, Example)}
        return answered | {(item.system, item.prompt) for item in _read(self.dropped, Dropped)}

    def keep(self, example: Example) -> None:
        """Write an answer."""
        self._write(self.path, example)

    def drop(self, question: Question, said: Said, why: Fault) -> None:
        """Write an answer that is not to be learnt."""
        fields = Dropped(why=why, prompt=question.prompt, system=question.system, answer=said.text)
        self._write(self.dropped, fields)

    def _write(self, path: Path, item: Example | Dropped) -> None:
        with writing(path):
            self._files[path].write(msgspec.json.encode(item) + b"\n")


def _mend(path: Path) -> None:
    """Cut off a line that was being written when its run was killed; end one that is whole."""
    if not path.is_file():
        return
    content = path.read_bytes()
    begin = content.rfind(b"\n") + 1
    if begin == len(content):
        return
    try:
        msgspec.json.decode(content[begin:])
    except msgspec.DecodeError:
        os.truncate(path, begin)
    else:
        path.write_bytes(content + b"\n")


_Item = TypeVar("_Item", Example, Dropped)


def _read(path: Path, kind: type[_Item]) -> list[_Item]:
    try:
        lines = path.read_bytes().splitlines()
        return [msgspec.json.decode(line, type=kind) for line in lines if line.strip()]
    except msgspec.DecodeError as error:
        raise RecipeError(
            f"{path} holds something else than answers: {error}",
            hint="name another file for them with --out",
        ) from error
