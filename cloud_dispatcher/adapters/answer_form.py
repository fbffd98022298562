"""The form of an answer where nobody can enforce it: asked for in words, checked afterwards."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import jsonschema_rs
import msgspec

from cloud_dispatcher.adapters.sound_text import sound
from fleet_protocol.messages import OutputFormat

ASKS_SCHEMA: Final = "Answer with JSON only, valid under this JSON schema: "
ASKS_OBJECT: Final = "Answer with one JSON object only."
ASKS_CHOICE: Final = "Answer with exactly one of these texts and nothing else: "
ASKS_MATCH: Final = "Answer with nothing but a text that this regular expression matches: "

_MISFIT_CHARS: Final = 500
_LINEAR: Final = jsonschema_rs.RegexOptions()
"""An engine whose time is linear in the text: a device's expression must not stall the fleet."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, brought into its form as far as that takes no guessing.

    Attributes:
        misfit: Why it is not of the form; empty if it is.
    """

    text: str
    misfit: str = ""


def instruction(output: OutputFormat) -> str:
    """Return the form in words, for a provider."""
    if output.json_schema is not None:
        return ASKS_SCHEMA + json.dumps(output.json_schema, ensure_ascii=False)
    if output.choices is not None:
        return ASKS_CHOICE + json.dumps(output.choices, ensure_ascii=False)
    return ASKS_OBJECT if output.regex is None else ASKS_MATCH + output.regex


def fit(text: str, output: OutputFormat) -> Fit:
    """Check an answer against its form.

    JSON is written as a board writes it, on one line; white space around the answer goes, and a
    choice may be spelled with other capitals or a final dot.
    """
    bare = text.strip()
    if output.choices is not None:
        return _fit_choice(bare, output.choices)
    if output.regex is not None:
        schema = {"type": "string", "pattern": f"^(?:{output.regex})$"}
        for candidate in (text, bare):
            if not _misfit(candidate, schema):
                return Fit(text=candidate)
        return Fit(text=text, misfit="the answer does not match the regular expression")
    try:
        value = json.loads(bare, parse_constant=_no_number)
        line = json.dumps(value, ensure_ascii=False)
        if not line.isascii():
            line = sound(line)
            value = json.loads(line)
    except (ValueError, RecursionError):
        return Fit(text=text, misfit="the answer is not JSON")
    schema = {"type": "object"} if output.json_schema is None else output.json_schema
    return Fit(text=line, misfit=_misfit(value, schema))


def _fit_choice(text: str, choices: tuple[str, ...]) -> Fit:
    alike = {choice.casefold().strip(" ."): choice for choice in choices}
    choice = text if text in choices else alike.get(text.casefold().strip(" ."))
    if choice is None:
        return Fit(text=text, misfit="the answer is none of the choices")
    return Fit(text=choice)


def _misfit(value: Any, schema: dict[str, Any]) -> str:
    try:
        # Offline: a schema must not make the dispatcher fetch things.
        validator = jsonschema_rs.validator_for(
            schema, pattern_options=_LINEAR, offline=True, mask="the answer"
        )
    except (ValueError, RecursionError) as error:
        return f"the form cannot be checked: {_words(error)}"
    try:
        validator.validate(value)
    except (ValueError, RecursionError) as error:
        return f"the answer is not valid under the schema: {_words(error)}"
    return ""


def _words(error: Exception) -> str:
    return str(getattr(error, "message", error))[:_MISFIT_CHARS]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
