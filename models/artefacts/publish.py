"""Publish artefacts: a static layout that a folder or any web server can hold.

    index.json                          every published version, newest last
    models/NAME/VERSION/manifest.json   and what is there for people
    blobs/SHA256                        every file, once, whatever it is called

The files come first, the index last: who follows the index finds everything. A name and a version
never change their bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from fleet_protocol.manifest import MANIFEST_NAME, Manifest, ModelFile
from models.artefacts.shelf import Shelf
from models.cache import hash_file
from models.errors import AlreadyPublishedError, VerificationError
from models.progress import Progress
from models.proof.verify import read_manifest

INDEX_NAME: Final = "index.json"
INDEX_FORMAT: Final = 1


class PublishedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the index.

    Attributes:
        manifest: Its path below the index.
        sha256: Of the manifest, which has those of the files.
        size_bytes: Of all files together.
    """

    name: str
    version: str
    manifest: str
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int
    files: tuple[ModelFile, ...]


class PublishedIndex(msgspec.Struct, frozen=True, kw_only=True):
    """All that is published in one place."""

    format: int = INDEX_FORMAT
    models: tuple[PublishedModel, ...] = ()

    def find(self, name: str, version: str) -> PublishedModel | None:
        """Return that version."""
        same = (item for item in self.models if (item.name, item.version) == (name, version))
        return next(same, None)


class PublishReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was done.

    Attributes:
        is_new: False: it was published before, bit for bit.
        sent_bytes: Of files that were not there yet.
    """

    name: str
    version: str
    manifest: str
    is_new: bool
    sent_bytes: int


def publish(folder: Path, shelf: Shelf, progress: Progress) -> PublishReport:
    """Publish the artefact in a folder; what is there already is not sent again.

    Raises:
        VerificationError: The artefact is damaged; nothing is published.
        AlreadyPublishedError: This version is published with other bytes; nothing is changed.
        CannotWriteError, PublishUnavailableError: The place is full or away; the index does not
            name it yet, and the same command goes on.
    """
    manifest = read_manifest(folder)
    _refuse_damage(folder, manifest)
    entry = _entry(folder, manifest)
    published = _read_index(shelf).find(entry.name, entry.version)
    if published is not None and published != entry:
        raise _differs(entry)
    at = shelf.read(entry.manifest)
    if at is not None and hashlib.sha256(at).hexdigest() != entry.sha256:
        raise _differs(entry)
    sent_bytes = _send_files(folder, manifest, shelf, progress)
    home = entry.manifest.removesuffix(MANIFEST_NAME)
    for report in sorted(_reports(folder, manifest)):
        shelf.put(f"{home}{report}", folder / report)
    if at is None:
        shelf.put(entry.manifest, folder / MANIFEST_NAME)
    if published is None:
        _add(shelf, entry)
    return PublishReport(
        name=entry.name,
        version=entry.version,
        manifest=entry.manifest,
        is_new=published is None,
        sent_bytes=sent_bytes,
    )


def _send_files(folder: Path, manifest: Manifest, shelf: Shelf, progress: Progress) -> int:
    total_bytes = sum(file.size_bytes for file in manifest.files)
    done_bytes = sent_bytes = 0
    progress.step("publish", f"{manifest.name} {manifest.version}")
    for file in manifest.files:
        blob = f"blobs/{file.sha256}"
        if shelf.size_bytes(blob) != file.size_bytes:
            shelf.put(blob, folder / file.path)
            sent_bytes += file.size_bytes
        done_bytes += file.size_bytes
        progress.advance(done_bytes, total_bytes)
    return sent_bytes


def _add(shelf: Shelf, entry: PublishedModel) -> None:
    """Name the version in the index, as it is now."""
    models = (*_read_index(shelf).models, entry)
    text = msgspec.json.format(msgspec.json.encode(PublishedIndex(models=models)), indent=2)
    shelf.put(INDEX_NAME, text)


def _read_index(shelf: Shelf) -> PublishedIndex:
    text = shelf.read(INDEX_NAME)
    if text is None:
        return PublishedIndex()
    try:
        return msgspec.json.decode(text, type=PublishedIndex)
    except msgspec.DecodeError as error:
        raise VerificationError(
            f"{INDEX_NAME} there is not an index: {error}",
            hint="publish to another place, or restore the index",
        ) from error


def _entry(folder: Path, manifest: Manifest) -> PublishedModel:
    return PublishedModel(
        name=manifest.name,
        version=manifest.version,
        manifest=f"models/{manifest.name}/{manifest.version}/{MANIFEST_NAME}",
        sha256=hash_file(folder / MANIFEST_NAME),
        size_bytes=sum(file.size_bytes for file in manifest.files),
        files=manifest.files,
    )


def _reports(folder: Path, manifest: Manifest) -> set[str]:
    listed = {file.path for file in manifest.files} | {MANIFEST_NAME}
    return {path.name for path in folder.iterdir() if path.is_file()} - listed


def _refuse_damage(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or hash_file(path) != file.sha256:
            raise VerificationError(
                f"{file.path} is not the file that the manifest describes",
                hint="build the artefact again with --force",
            )


def _differs(entry: PublishedModel) -> AlreadyPublishedError:
    return AlreadyPublishedError(
        f"{entry.name} {entry.version} is published with other bytes",
        hint="give the recipe another version",
    )
