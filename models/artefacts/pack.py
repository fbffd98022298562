"""Put a verified model's files and its manifest into one folder, in one move."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeAlias

import msgspec

from fleet_protocol.manifest import (
    MANIFEST_NAME,
    DifficultyManifest,
    EmbeddingManifest,
    Manifest,
    ModelFile,
)
from models.cache import fresh_folder, hash_file
from models.errors import writing

AnyManifest: TypeAlias = Manifest | EmbeddingManifest | DifficultyManifest


def describe_files(files: dict[str, Path]) -> tuple[ModelFile, ...]:
    """Return what the manifest says of files, by their path in the artefact."""
    return tuple(
        ModelFile(path=name, sha256=hash_file(path), size_bytes=path.stat().st_size)
        for name, path in sorted(files.items())
    )


def pack(
    manifest: AnyManifest,
    files: dict[str, Path],
    target: Path,
    *,
    reports: dict[str, bytes] | None = None,
) -> bool:
    """Write the artefact to `target`; return whether it was not there already, bit for bit.

    A worker never sees half of it: it is written beside the target and renamed.

    Args:
        manifest: Describes `files`.
        files: By name in the artefact.
        target: Its folder.
        reports: Further files for people, by name; the manifest does not list them.

    Raises:
        CannotWriteError: The disk is full, read-only or not ours; nothing is left behind.
    """
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    if _is_packed(text, manifest, target):
        return False
    with writing(target), fresh_folder(target) as folder:
        for name, path in files.items():
            # Copied, not hard-linked: ONNX refuses weights that have a second name.
            shutil.copyfile(path, folder / name)
        for name, content in (reports or {}).items():
            (folder / name).write_bytes(content)
        (folder / MANIFEST_NAME).write_bytes(text)
    return True


def _is_packed(text: bytes, manifest: AnyManifest, target: Path) -> bool:
    try:
        return (target / MANIFEST_NAME).read_bytes() == text and all(
            hash_file(target / file.path) == file.sha256 for file in _files(manifest)
        )
    except OSError:
        return False


def _files(manifest: AnyManifest) -> tuple[ModelFile, ...]:
    """Return the files beside the manifest: a difficulty model is all in it."""
    return () if isinstance(manifest, DifficultyManifest) else manifest.files
