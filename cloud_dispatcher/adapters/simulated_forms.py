"""Answers of a form, made up: what the simulated DeepSeek says where a form was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from cloud_dispatcher.adapters.answer_form import ASKS_CHOICE, ASKS_SCHEMA

_DEPTH_MOST: Final = 8
_OF_TYPE: Final[dict[str, Any]] = {
    "string": "simulated",
    "number": 0,
    "integer": 0,
    "boolean": False,
    "array": [],
}


def made_up(instructions: Iterable[str]) -> str | None:
    """Return an answer of the form that one of the system messages asks for; None: of no form."""
    for text in instructions:
        if text.startswith(ASKS_CHOICE):
            return str(json.loads(text.removeprefix(ASKS_CHOICE))[0])
        if text.startswith(ASKS_SCHEMA):
            schema = json.loads(text.removeprefix(ASKS_SCHEMA))
            return json.dumps(_value(schema, depth=0), ensure_ascii=False)
    return None


def _value(schema: Any, *, depth: int) -> Any:
    """Return a value of the simplest schemas; of the others one that the check will complain of."""
    if not isinstance(schema, dict) or depth > _DEPTH_MOST:
        return None
    if "const" in schema:
        return schema["const"]
    for name in ("enum", "anyOf", "oneOf"):
        if schema.get(name):
            first = schema[name][0]
            return first if name == "enum" else _value(first, depth=depth + 1)
    kinds = schema.get("type", "object" if "properties" in schema else "null")
    kind = kinds[0] if isinstance(kinds, list) else kinds
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        names = schema.get("required") or list(properties)
        return {name: _value(properties.get(name), depth=depth + 1) for name in names}
    if kind in {"number", "integer"}:
        return schema.get("minimum", 0)
    return _OF_TYPE.get(kind)
