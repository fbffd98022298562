"""Renders docs/messages.md: every message of the protocol, from the structs that read them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from docs.struct_words import default, fields, meaning, meanings, structs_of, summary, words
from fleet_protocol.topics import CATALOGUE, Channel

_INTRODUCTION = """# Topics and messages

Rendered from `fleet_protocol` by `make docs`. Payloads are JSON. Fields that a program does not
know are ignored; one that is missing or wrong has the message refused with a code. Whole numbers
end at 2^53 - 1, instants (`_at_ms`) with the year 9999, measures at 1e15 and those of a board at
1e9, where no less is said. The [table of topics](../ARCHITECTURE.md#topics) says who says what to
whom, and its rules what no table can show. For programs the gateway has the same
[as AsyncAPI](gateway.md#for-programs-openapi-and-asyncapi).
"""


def render_messages() -> str:
    """Return the page."""
    told: set[type] = set()
    parts = [_INTRODUCTION]
    for channel in CATALOGUE:
        for kind in (channel.message, *channel.also):
            if kind not in told:
                parts.extend(_section(kind, told, level=2))
    return "\n".join(parts)


def _section(kind: type[msgspec.Struct], told: set[type], *, level: int) -> Iterator[str]:
    """Yield a message, and after it the parts that it has for the first time."""
    told.add(kind)
    yield f"{'#' * level} {kind.__name__}\n\n{summary(kind)}\n"
    topics = [channel for channel in CATALOGUE if kind in (channel.message, *channel.also)]
    if topics:
        yield f"On {', '.join(f'`{channel.template}`' for channel in topics)}{_text(topics)}.\n"
    says = meanings(kind)
    rows = [
        f"| `{at.encode_name}` | {words(at.type)} | {_given(at)} | {meaning(at, says)} |"
        for at in fields(kind)
    ]
    if rows:
        yield "\n".join(["| field | | without it | |", "|---|---|---|---|", *rows, ""])
    for field in fields(kind):
        for inner in structs_of(field.type):
            if inner not in told and not _travels_alone(inner):
                yield from _section(inner, told, level=3)


def _given(field: msgspec.inspect.Field) -> str:
    return "refused" if field.required else default(field)


def _text(topics: list[Channel]) -> str:
    return "; plain text is taken as well" if any(channel.text for channel in topics) else ""


def _travels_alone(kind: type) -> bool:
    return any(kind in (channel.message, *channel.also) for channel in CATALOGUE)
