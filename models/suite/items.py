"""One item of the suite, and how a file of them is read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from fleet_protocol.errors import ConfigError, cause_of

_FOLDER = Path(__file__).parent


class SuiteError(ConfigError):
    """A file of suite items cannot be read as one."""

    code = "bad_suite"


class Script(StrEnum):
    """Which letters an answer must be written in."""

    LATIN = "latin"
    HAN = "han"


class _Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes an answer right."""


class JsonCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="json"):
    """The answer is this JSON object and nothing else; strings match in any case."""

    want: dict[str, Any]


class ChoiceCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="choice"):
    """The answer is this label; `labels` are those that the prompt offers."""

    want: str
    labels: tuple[str, ...] = ()


class FirstWordCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="first_word"):
    """The answer begins with this word."""

    want: str


class NumberCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="number"):
    """The first number of the answer is this one; a unit may follow."""

    want: float


class AnyCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="any"):
    """At least one of these appears."""

    want: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class ContainsCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="contains"):
    """All of these appear; of a list within the list, at least one.

    Attributes:
        max_words: Longest answer, in words between spaces.
        max_sentences: Most sentences.
        script: Letters to write in.
        has_case: Capitals count.
    """

    want: Annotated[tuple[str | tuple[str, ...], ...], msgspec.Meta(min_length=1)]
    max_words: int | None = None
    max_sentences: int | None = None
    script: Script | None = None
    has_case: bool = False


class RefusalCheck(_Check, frozen=True, kw_only=True, tag_field="kind", tag="refusal"):
    """The answer is the sentence by which a model hands a question on."""

    want: str


Check: TypeAlias = (
    JsonCheck | ChoiceCheck | FirstWordCheck | NumberCheck | AnyCheck | ContainsCheck | RefusalCheck
)


class SuiteItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt and its right answers.

    Attributes:
        id: Unique in its file set.
        family: The kind of task, e.g. `command`.
        language: Of the prompt, e.g. `en`.
        system: A system turn before the prompt.
        schema: JSON schema of the answer, for decoding under a constraint.
    """

    id: Annotated[str, msgspec.Meta(min_length=1)]
    family: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    language: str = "en"
    system: str | None = None
    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    check: Check
    schema: dict[str, Any] | None = None

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """The conversation, as (role, content) pairs."""
        asked = ("user", self.prompt)
        return (asked,) if self.system is None else (("system", self.system), asked)


def load_suite() -> tuple[SuiteItem, ...]:
    """Return every item that ships with the project, in a fixed order."""
    return tuple(item for path in sorted(_FOLDER.glob("*/*.jsonl")) for item in read_items(path))


def load_reasoning() -> tuple[SuiteItem, ...]:
    """Return questions of several steps, which a small model is to hand on; no part of it."""
    return read_items(_FOLDER / "reasoning.jsonl")


def read_items(path: Path) -> tuple[SuiteItem, ...]:
    """Read a file of items, one JSON object a line; blank lines are skipped.

    Raises:
        SuiteError: No such file, not an item, or an id that comes twice; names the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(
            f"{path} cannot be read: {cause_of(error)}", hint="name a UTF-8 file of JSON lines"
        ) from error
    items: dict[str, SuiteItem] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = msgspec.json.decode(line, type=SuiteItem)
        except msgspec.DecodeError as error:
            raise SuiteError(
                f"{path.name} line {number}: {error}",
                hint="compare it with a line of models/suite/en/command.jsonl",
            ) from error
        if item.id in items:
            raise SuiteError(
                f"{path.name} line {number}: the id {item.id!r} comes twice",
                hint="give every item an id of its own",
            )
        items[item.id] = item
    return tuple(items.values())
