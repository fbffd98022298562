"""Renders docs/configuration.md: every setting, from the structs that check them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec.inspect import VarTupleType

from cloud_dispatcher.config import ENVIRONMENT_PREFIX, DispatcherSettings
from docs.struct_words import default, fields, meaning, meanings, structs_of, summary, words
from edge_worker.config import PREFIX, WorkerSettings

_INTRODUCTION = """# Every setting

Rendered from the programs themselves by `make docs`. Settings come from a TOML file (`--config`),
and on top of it from the environment: `{prefix}_ENGINE__LEASE_MS=20000` sets `lease_ms` in the
table `[engine]`. What is not known, or out of its bounds, is refused by name; `cloud-dispatcher
check` and `edge-worker check` do so before a start. The commented examples are
[cloud_dispatcher/example.toml](../cloud_dispatcher/example.toml) and
[edge_worker/example.toml](../edge_worker/example.toml).
"""


def render_settings() -> str:
    """Return the page."""
    told: dict[type, str] = {}
    parts = [_INTRODUCTION.format(prefix=ENVIRONMENT_PREFIX)]
    for program, kind, prefix in (
        ("cloud-dispatcher", DispatcherSettings, ENVIRONMENT_PREFIX),
        ("edge-worker", WorkerSettings, PREFIX),
    ):
        parts.append(f"## {program}\n\nIn the environment: `{prefix}_...`.\n")
        parts.extend(_tables(kind, "", told))
    return "\n".join(parts)


def _tables(
    kind: type[msgspec.Struct], path: str, told: dict[type, str], *, is_list: bool = False
) -> Iterator[str]:
    """Yield the section of a table, then those within it; one that was told already is named."""
    if path:
        yield f"### `[[{path}]]`\n" if is_list else f"### `[{path}]`\n"
    if kind in told:
        yield f"The settings of [`[{told[kind]}]`](#{_anchor(told[kind])}).\n"
        return
    if path:
        told[kind] = path
        yield f"{summary(kind)}\n"
    says = meanings(kind)
    plain = [field for field in fields(kind) if not structs_of(field.type)]
    if plain:
        rows = [
            f"| `{at.encode_name}` | {default(at)} | {words(at.type)} | {meaning(at, says)} |"
            for at in plain
        ]
        yield "\n".join(["| setting | default | may be | |", "|---|---|---|---|", *rows, ""])
    for field in fields(kind):
        for inner in structs_of(field.type):
            within = f"{path}.{field.encode_name}" if path else field.encode_name
            yield from _tables(inner, within, told, is_list=isinstance(field.type, VarTupleType))


def _anchor(path: str) -> str:
    return re.sub(r"[^\w-]", "", path.lower())
