"""From the text of a library file, which an operator edits, to a `Library`."""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Any, Final

import msgspec

from fleet_protocol.errors import ConfigError
from fleet_protocol.library import (
    LOOKED_AT_CHARS,
    NEAREST_LEAST,
    Entry,
    Library,
    spelling,
    words_of,
)

FILE_MAX_BYTES: Final = 4_194_304
QUESTIONS_MOST: Final = 5_000
"""In all entries together: what a lookup may cost is bounded by it."""

_Question = Annotated[str, msgspec.Meta(min_length=1, max_length=LOOKED_AT_CHARS)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=8_000)]
_Language = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2,3}$")]
_Texts = Annotated[dict[_Language, _Text], msgspec.Meta(min_length=1)]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]

_ENTRY_LINE: Final = re.compile(r"^\s*\[\[\s*entry\s*\]\]", re.MULTILINE)
_PLACE: Final = re.compile(r"\$\.entry\[(\d+)\]")
_HINT: Final = "correct it; `fleet library check FILE` says whether all is well"


class LibraryFileError(ConfigError):
    """A library file cannot be used; the message says where and why."""

    code = "bad_library"


class _EntryRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    answer: _Text | _Texts
    exact: tuple[_Question, ...] = ()
    pattern: tuple[_Question, ...] = ()
    nearest: tuple[_Question, ...] = ()
    least: _Share | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file.

    Attributes:
        version: Of the format.
        nearest_least: `least` of the entries that name none of their own.
        default: What is said where no entry matches; None: nothing, the job fails as it would
            without a library.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    nearest_least: _Share = NEAREST_LEAST
    default: _Text | _Texts | None = None
    entry: tuple[_EntryRow, ...] = ()


def parse_library(text: str, *, origin: str = "library") -> Library:
    """Build a library from TOML.

    Args:
        text: Of the file.
        origin: Its name, for messages.

    Raises:
        LibraryFileError: `bad_library`, naming the line or the entry and what to do.
    """
    if len(text.encode()) > FILE_MAX_BYTES:
        raise LibraryFileError(f"{origin} has more than {FILE_MAX_BYTES} bytes", hint="split it")
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LibraryFileError(f"{origin} is not TOML: {error}", hint=_HINT) from error
    try:
        file = msgspec.convert(tree, _File)
    except msgspec.ValidationError as error:
        raise LibraryFileError(f"{origin}{_place(error, text)}: {error}", hint=_HINT) from error
    _check(file, text, origin)
    return Library([_entry(row, file) for row in file.entry], default=file.default)


def _entry(row: _EntryRow, file: _File) -> Entry:
    return Entry(
        name=row.name,
        answer=row.answer,
        exact=row.exact,
        pattern=row.pattern,
        nearest=row.nearest,
        least=file.nearest_least if row.least is None else row.least,
    )


def _check(file: _File, text: str, origin: str) -> None:
    """Refuse what is well-formed and still cannot be meant."""
    lines = _lines(text)
    names: set[str] = set()
    questions: dict[str, str] = {}
    count = 0
    for number, row in enumerate(file.entry):
        where = f"{origin}, entry {row.name!r}{_at(lines, number)}"
        if row.name in names:
            raise LibraryFileError(f"{where}: there is another of that name", hint=_HINT)
        names.add(row.name)
        if not (row.exact or row.pattern or row.nearest):
            message = f"{where}: it has no question"
            raise LibraryFileError(message, hint="give it `exact`, `pattern` or `nearest`")
        for pattern in (*row.pattern, *row.nearest, *row.exact):
            if not words_of(pattern.replace("*", " ")):
                message = f"{where}: {pattern!r} has no word, it would match anything or nothing"
                raise LibraryFileError(message, hint="for anything at all, write a `default`")
        for question in row.exact:
            other = questions.setdefault(spelling(question), row.name)
            if other != row.name:
                message = f"{where}: {question!r} is in {other!r} already"
                raise LibraryFileError(message, hint="leave it in one of the two")
        count += len(row.exact) + len(row.pattern) + len(row.nearest)
    if count > QUESTIONS_MOST:
        message = f"{origin} has {count} questions, at most {QUESTIONS_MOST} are allowed"
        raise LibraryFileError(message, hint="let patterns take the place of some")


def _place(error: msgspec.ValidationError, text: str) -> str:
    found = _PLACE.search(str(error))
    if found is None:
        return ""
    number = int(found[1])
    return f", entry number {number + 1}{_at(_lines(text), number)}"


def _lines(text: str) -> list[int]:
    """Return the lines on which entries begin, as far as they are written as `[[entry]]`."""
    return [text.count("\n", 0, found.end()) + 1 for found in _ENTRY_LINE.finditer(text)]


def _at(lines: list[int], number: int) -> str:
    return f" (line {lines[number]})" if number < len(lines) else ""
