"""Labelled prompts: which of them a model answered rightly, from JSON lines or CSV."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from fleet_protocol.errors import ConfigError, cause_of

MIN_ROWS: Final = 60
"""Fewer say nothing about prompts left out."""
MIN_OF_EACH: Final = 10

_RIGHT: Final = frozenset({"1", "1.0", "true", "yes", "right"})
_WRONG: Final = frozenset({"0", "0.0", "false", "no", "wrong"})


class LabelledDataError(ConfigError):
    """The labelled prompts cannot be read, or are too few to learn from."""

    code = "bad_labelled_data"


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt and whether the model answered it rightly."""

    prompt: str
    is_right: bool


def read_labelled(
    path: Path, *, prompt_column: str = "prompt", right_column: str = "right"
) -> tuple[Labelled, ...]:
    """Read rows from a `.csv` file with a header, or from JSON lines.

    Raises:
        LabelledDataError: Unreadable, a row without prompt or label, too few rows, or only one
            kind of answer; names the line.
    """
    rows = tuple(
        _labelled(row, f"{path.name}, row {number}", prompt_column, right_column)
        for number, row in enumerate(read_rows(path), start=1)
    )
    right = sum(row.is_right for row in rows)
    if len(rows) < MIN_ROWS or min(right, len(rows) - right) < MIN_OF_EACH:
        raise LabelledDataError(
            f"{path.name} has {len(rows)} rows, {right} of them right; at least {MIN_ROWS} are "
            f"needed, and {MIN_OF_EACH} of each kind",
            hint="label more answers",
        )
    return rows


def hash_rows(rows: Iterable[Labelled]) -> str:
    """Return one SHA-256 over what the fit depends on, however the file was written."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(msgspec.json.encode(row))
    return digest.hexdigest()


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the rows of a `.csv` file with a header, or JSON objects, one a line.

    Raises:
        LabelledDataError: Unreadable.
    """
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as stream:
                yield from csv.DictReader(stream)
        else:
            with path.open("rb") as lines:
                for line in lines:
                    if line.strip():
                        yield msgspec.json.decode(line, type=dict[str, Any])
    except (OSError, ValueError, csv.Error) as error:
        raise LabelledDataError(
            f"{path} cannot be read: {cause_of(error)}",
            hint='write one {"prompt": "...", "right": true} a line, or CSV with a header',
        ) from error


def _labelled(row: Mapping[str, Any], at: str, prompt_column: str, right_column: str) -> Labelled:
    prompt, right = row.get(prompt_column), row.get(right_column)
    word = str(right).strip().lower()
    if not isinstance(prompt, str) or not prompt.strip() or word not in _RIGHT | _WRONG:
        raise LabelledDataError(
            f"{at} has no text in {prompt_column!r}, or neither right nor wrong in "
            f"{right_column!r}; it has {', '.join(sorted(map(str, row)))}",
            hint="name the columns with --prompt-column and --right-column",
        )
    return Labelled(prompt=prompt, is_right=word in _RIGHT)
