"""The form that an answer must have, and what of it a board can take."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from fleet_protocol.messages.words import Part

SCHEMA_MAX_BYTES: Final = 16_384
"""Longest JSON schema of an answer, as compact JSON: a board compiles it in milliseconds."""
SCHEMA_MAX_DEPTH: Final = 64
"""Deepest nesting of a JSON schema, so that no later reader of the job runs out of stack."""


class OutputFormat(Part, frozen=True, kw_only=True, omit_defaults=True):
    """The form an answer must have. Exactly one of the four is given.

    Attributes:
        json_schema: The answer is JSON on one line, valid under this schema, its properties in the
            schema's order.
        choices: The answer is one of these texts.
        regex: The whole answer matches it; Rust's syntax, without look-around and back-references.
        json: The answer is a JSON object, of whatever content.
    """

    json_schema: dict[str, Any] | None = None
    choices: (
        Annotated[
            tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=256)], ...],
            msgspec.Meta(min_length=1, max_length=256),
        ]
        | None
    ) = None
    regex: Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)] | None = None
    json: bool = False

    def __post_init__(self) -> None:
        given = (self.json_schema is not None, self.choices is not None, self.regex is not None)
        if sum(given) + self.json != 1:
            raise ValueError("give exactly one of `json_schema`, `choices`, `regex` and `json`")
        if self.json_schema is not None:
            _check_schema(self.json_schema)

    @property
    def is_json(self) -> bool:
        """Whether an answer of this form is JSON."""
        return self.json or self.json_schema is not None


def _check_schema(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(SCHEMA_MAX_DEPTH):
        level = [
            part
            for value in level
            for part in (value.values() if isinstance(value, dict) else value)
            if isinstance(part, dict | list | tuple)
        ]
    if level:
        raise ValueError(f"the JSON schema is nested deeper than {SCHEMA_MAX_DEPTH} levels")
    try:
        size_bytes = len(msgspec.json.encode(schema))
        msgspec.msgpack.encode(
            schema
        )  # As stores keep it: whole numbers beyond 64 bits will not do.
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"the JSON schema cannot be written as JSON: {error}") from error
    if size_bytes > SCHEMA_MAX_BYTES:
        raise ValueError(
            f"the JSON schema has {size_bytes} bytes, at most {SCHEMA_MAX_BYTES} are allowed"
        )
