"""Ids, bounds and units that messages are made of."""

from __future__ import annotations

from typing import Annotated, ClassVar, NewType

import msgspec

PROTOCOL_VERSION = 1

DeviceId = NewType("DeviceId", str)
WorkerId = NewType("WorkerId", str)
JobId = NewType("JobId", str)
"""The device's own name for a job; unique for that device."""
JobKey = NewType("JobKey", str)
"""The dispatcher's name for a job (a ULID): unique in the fleet, sortable by time."""

# `$` alone would let one newline follow; `\Z` is not for the JSON Schema this ends up in.
ID_PATTERN = r"^[A-Za-z0-9_-]{1,36}$(?!\n)"
PROMPT_MAX_CHARS = 1_000_000
TEXT_MAX_CHARS = 1_000_000
# A number beyond it is nobody's count: programs that read JSON lose its last digits, no store keeps
# it, and what cannot be kept could not be settled either.
WHOLE_MAX = 2**53 - 1
LAST_AT_MS = 253_402_300_799_999
"""The end of the year 9999."""
MEASURE_MAX = 1e15
BOARD_MAX = 1e9
"""What a board measures: of a million boards the sum is a measure, too."""

Id = Annotated[str, msgspec.Meta(pattern=ID_PATTERN)]
Code = Annotated[str, msgspec.Meta(max_length=64)]
Note = Annotated[str, msgspec.Meta(max_length=2_000)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX_CHARS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=WHOLE_MAX)]
SpanMs = Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400_000)]
InstantMs = Annotated[int, msgspec.Meta(ge=0, le=LAST_AT_MS)]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=WHOLE_MAX)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Measure = Annotated[float, msgspec.Meta(ge=0.0, le=MEASURE_MAX)]
BoardMeasure = Annotated[float, msgspec.Meta(ge=0.0, le=BOARD_MAX)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all top-level messages. `v` is the protocol version the sender speaks."""

    MAX_BYTES: ClassVar[int] = 16_384

    v: int = PROTOCOL_VERSION


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the structs that live inside messages."""
