"""What a teacher is asked: one question a line, or one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from models.distill.example import Example
from models.errors import RecipeError

_JSON_SUFFIX: Final = ".jsonl"


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question without its answer; the fields are an example's."""

    family: str
    language: str
    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    system: str | None = None

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """The conversation, as (role, content) pairs."""
        asked = ("user", self.prompt)
        return (asked,) if self.system is None else (("system", self.system), asked)

    def answered(self, answer: str) -> Example:
        """Return the example that it becomes."""
        return Example(
            family=self.family,
            language=self.language,
            system=self.system,
            prompt=self.prompt,
            answer=answer,
        )


def read_questions(path: Path, *, family: str, language: str) -> tuple[Question, ...]:
    """Read a file of questions, each once.

    Args:
        path: `.jsonl`: objects with `prompt` and, if they like, `family`, `language` and `system`.
            Anything else: a question a line.
        family: Of a question that names none.
        language: Of a question that names none.

    Raises:
        RecipeError: It cannot be read, or a line is no question; names the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {error}", hint="name a UTF-8 file of questions"
        ) from error
    named = {"family": family, "language": language}
    found: dict[Question, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix != _JSON_SUFFIX:
            found[Question(prompt=line.strip(), **named)] = None
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, object])
            found[msgspec.convert(named | fields, Question)] = None
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise RecipeError(
                f"{path} line {number} is not a question: {error}",
                hint='write {"prompt": ...}, with "family", "language" and "system" if need be',
            ) from error
    if not found:
        raise RecipeError(f"{path} holds no question", hint="write at least one into it")
    return tuple(found)
