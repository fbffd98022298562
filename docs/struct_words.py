"""What the derived pages say of a struct: its fields, what each may be, what each means."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping

import msgspec
from msgspec.inspect import (
    DictType,
    EnumType,
    Field,
    ListType,
    LiteralType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from fleet_protocol.messages.words import BOARD_MAX, LAST_AT_MS, MEASURE_MAX, WHOLE_MAX

_FAR = {WHOLE_MAX, LAST_AT_MS, MEASURE_MAX, BOARD_MAX}
"""Bounds that nobody meets in earnest: the page says them once."""
_WORDS = {
    "AnyType": "anything",
    "BoolType": "true or false",
    "FloatType": "a number",
    "IntType": "a whole number",
    "NoneType": "",
    "StrType": "text",
}


def summary(kind: type[msgspec.Struct]) -> str:
    """Return what a struct's docstring says before its attributes."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0]


def meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return what the docstrings of a struct, and of those it stands on, say of its fields."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, rest = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        listed = re.split(r"\n(?=    \w)", rest.partition("\n\n")[0])
        entries = (entry.strip().partition(": ") for entry in listed)
        for name, _, text in entries:
            if text:
                found[name] = _without_it(" ".join(text.split()))
    return found


def _without_it(text: str) -> str:
    """Say what the code calls None as readers of settings and JSON do."""
    text = re.sub(r"(^|\. )None\b", r"\1Without it", text)
    return re.sub(r"\bNone\b", "without it", text)


def meaning(field: Field, says: Mapping[str, str]) -> str:
    """Say what a field means; the values of an enumeration have a docstring of their own."""
    if isinstance(field.type, EnumType):
        return says.get(field.name) or inspect.cleandoc(field.type.cls.__doc__ or "")
    return says.get(field.name, "")


def fields(kind: type[msgspec.Struct]) -> tuple[Field, ...]:
    """Return a struct's fields.

    Raises:
        TypeError: It is none.
    """
    found = type_info(kind)
    if not isinstance(found, StructType):
        raise TypeError(f"{kind.__name__} is no struct")
    return found.fields


def structs_of(kind: Type) -> tuple[type[msgspec.Struct], ...]:
    """Return the structs behind a field: itself, of a list, or of a choice."""
    if isinstance(kind, StructType):
        return (kind.cls,)
    if isinstance(kind, VarTupleType | ListType):
        return structs_of(kind.item_type)
    if isinstance(kind, DictType):
        return structs_of(kind.value_type)
    if isinstance(kind, UnionType):
        return tuple(found for inner in kind.types for found in structs_of(inner))
    return ()


def default(field: Field) -> str:
    """Return the default as TOML and JSON have it; empty: there is none."""
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory() if callable(field.default_factory) else None
    if value is None or value in ((), {}) or isinstance(value, msgspec.Struct):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def words(kind: Type) -> str:
    """Say in words what a value may be."""
    if isinstance(kind, UnionType):
        return " or ".join(text for inner in kind.types if (text := words(inner)))
    if isinstance(kind, VarTupleType | ListType):
        return f"a list of {words(kind.item_type)}"
    if isinstance(kind, DictType):
        return f"a table of {words(kind.value_type)}"
    if isinstance(kind, LiteralType | EnumType):
        values = kind.values if isinstance(kind, LiteralType) else [one.value for one in kind.cls]
        return ", ".join(f"`{value}`" for value in values)
    if isinstance(kind, StructType):
        return f"[`{kind.cls.__name__}`](#{kind.cls.__name__.lower()})"
    return _WORDS[type(kind).__name__] + _bounds(kind)


def _bounds(kind: Type) -> str:
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "under"}
    lengths = {"min_length": "of at least", "max_length": "of at most"}
    found = [(word, getattr(kind, sign, None)) for sign, word in signs.items()]
    told = [f"{word} {bound:,}" for word, bound in found if bound not in {None, *_FAR}]
    for sign, word in lengths.items():
        bound = getattr(kind, sign, None)
        if bound is not None and bound > 1:
            told.append(f"{word} {bound:,} characters")
    return f", {', '.join(told)}" if told else ""
