"""Hypothesis strategies for every message type, made from the types' own constraints."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from fleet_protocol import messages as m

MESSAGES: tuple[type[m.Message], ...] = tuple(
    sorted(m.Message.__subclasses__(), key=lambda kind: kind.__name__)
)
_TEXT = st.characters(codec="utf-8")


def messages_of(kind: type[m.Message]) -> st.SearchStrategy[m.Message]:
    """Return valid messages of one type."""
    if kind is m.JobSubmit:
        return _any_submit()
    return _structs(kind)


def _any_submit() -> st.SearchStrategy[m.JobSubmit]:
    # Exactly one of the two, which the field types alone do not say.
    return st.one_of(_submits("prompt", "messages"), _submits("messages", "prompt"))


def _submits(given: str, missing: str) -> st.SearchStrategy[m.JobSubmit]:
    fields = _fields(m.JobSubmit)
    fields[given] = fields[given].filter(lambda value: value is not None)
    fields[missing] = st.none()
    fields["output"] = st.none() | _forms()
    # With a form go neither stop texts nor parts.
    alone = {"stop": (), "split": m.Split.NO}
    both = st.fixed_dictionaries(fields)
    either = both.map(lambda values: values if values["output"] is None else values | alone)
    one_model = either.map(_in_time).map(_of_one_model)
    return one_model.map(lambda values: m.JobSubmit(**values))


def _in_time(values: dict[str, Any]) -> dict[str, Any]:
    """Take the earlier of the two for the begin where it would be after the deadline."""
    begin_ms, deadline_ms = values["not_before_ms"], values["deadline_ms"]
    if begin_ms is None or deadline_ms is None or begin_ms < deadline_ms:
        return values
    return values | {"not_before_ms": deadline_ms - 1 or None}


def _of_one_model(values: dict[str, Any]) -> dict[str, Any]:
    """Let what a job needs name its model alone."""
    needs = values["needs"]
    return values if needs is None or needs.model is None else values | {"model": None}


def _forms() -> st.SearchStrategy[m.OutputFormat]:
    fields = _fields(m.OutputFormat)
    given = {
        name: values.filter(lambda value: value is not None)
        for name, values in {**fields, "json": st.just(True)}.items()  # noqa: FBT003 - a field's value
    }
    return st.one_of(
        [st.builds(m.OutputFormat, **{name: values}) for name, values in given.items()]
    )


def _structs(kind: Any) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(_fields(kind)).map(lambda values: kind(**values))


def _fields(kind: type[msgspec.Struct], *, but: str = "") -> dict[str, st.SearchStrategy[Any]]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    fields = {field.name: _values(field.type) for field in info.fields if field.name != but}
    if "v" in fields:
        fields["v"] = st.just(m.PROTOCOL_VERSION)
    return fields


def _values(  # noqa: PLR0911  # one a type
    info: msgspec.inspect.Type,
) -> st.SearchStrategy[Any]:
    simple = _scalars(info)
    if simple is not None:
        return simple
    match info:
        case msgspec.inspect.StructType(cls=m.OutputFormat):
            return _forms()
        case msgspec.inspect.StructType(cls=m.JobSubmit):
            return _any_submit()
        case msgspec.inspect.StructType(cls=m.Assignment):
            # One that came with another brings none itself.
            alone = st.fixed_dictionaries(_fields(m.Assignment, but="more"))
            return alone.map(lambda values: m.Assignment(**values))
        case msgspec.inspect.StructType():
            return _structs(info.cls)
        case msgspec.inspect.VarTupleType():
            few = st.lists(_values(info.item_type), min_size=info.min_length or 0, max_size=3)
            return few.map(tuple)
        case msgspec.inspect.DictType():
            return st.dictionaries(_values(info.key_type), _values(info.value_type), max_size=3)
        case msgspec.inspect.UnionType():
            return st.one_of([_values(part) for part in info.types])
        case msgspec.inspect.AnyType():
            return st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(_TEXT))
    raise AssertionError(f"no strategy for {info}")


def _scalars(  # noqa: PLR0911  # one a type
    info: msgspec.inspect.Type,
) -> st.SearchStrategy[Any] | None:
    match info:
        case msgspec.inspect.IntType():
            low = info.ge if info.ge is not None else -(2**62)
            return st.integers(low, min(info.le if info.le is not None else 2**62, 2**62))
        case msgspec.inspect.FloatType():
            low_float = info.ge if info.ge is not None else info.gt
            return st.floats(
                low_float, info.le, exclude_min=info.gt is not None,
                allow_nan=False, allow_infinity=False,
            )  # fmt: skip
        case msgspec.inspect.StrType(pattern=str() as pattern):
            whole = pattern.removesuffix(r"(?!\n)").removesuffix("$") + r"\Z"
            return st.from_regex(whole, fullmatch=True)
        case msgspec.inspect.StrType():
            longest = min(info.max_length or 40, 40)
            return st.text(_TEXT, min_size=info.min_length or 0, max_size=longest)
        case msgspec.inspect.EnumType():
            return st.sampled_from(list(info.cls))
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
    return None
