"""Thresholds that ship with a recipe: what a calibration of these very bytes has found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from fleet_protocol.manifest import Manifest, ModelFile, Routing
from models.cache import hash_key
from models.errors import writing

RECORD_SUFFIX: Final = ".routing.json"
_RECORDS: Final = Path(__file__).parents[1] / "recipes"


class RoutingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Attributes:
        files_sha256: Of the artefact's files: other weights have other doubts.
    """

    files_sha256: str
    routing: Routing


def recorded_routing(
    name: str, files: Sequence[ModelFile], *, records: Path = _RECORDS
) -> Routing | None:
    """Return what ships with the recipe of that name, where it is about these files."""
    try:
        found = msgspec.json.decode(
            (records / f"{name}{RECORD_SUFFIX}").read_bytes(), type=RoutingRecord
        )
    except (OSError, msgspec.DecodeError):
        return None
    return found.routing if found.files_sha256 == _hash(files) else None


def write_record(routing: Routing, manifest: Manifest, path: Path) -> None:
    """Write the record of an artefact's thresholds; raises CannotWriteError."""
    record = RoutingRecord(files_sha256=_hash(manifest.files), routing=routing)
    with writing(path):
        path.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def _hash(files: Sequence[ModelFile]) -> str:
    return hash_key(*(file.sha256 for file in files))
