"""The files in `queries/`: every statement of a store under its name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = "-- name: "


@cache
def read_statements(file: str) -> Mapping[str, str]:
    """Read `queries/FILE`: name -> statement, without the comments between them."""
    text = (files("cloud_dispatcher.adapters") / "queries" / file).read_text("utf-8")
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(_NAME):
            lines = found.setdefault(line.removeprefix(_NAME).strip(), [])
        elif not line.startswith("--"):
            lines.append(line)
    return {name: "\n".join(body).strip() for name, body in found.items()}
