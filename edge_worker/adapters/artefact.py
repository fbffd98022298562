"""Model artefacts on this machine: where they lie, and whether their bytes are the right ones.

The cache folder is `$EDGEFLEET_CACHE`, else `edgefleet` in the platform's cache folder; an artefact
lies in `models/NAME/VERSION/` below it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import msgspec

from edge_worker.ports import ModelError
from fleet_protocol.manifest import MANIFEST_FORMAT, MANIFEST_NAME, Manifest, ModelFile

REBUILD_HINT = "build it again with `python -m models build NAME`, or fetch it again"


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """A verified artefact: every file of the manifest is there and has the right bytes."""

    folder: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The ONNX graph file."""
        return self.folder / self.manifest.graph

    @property
    def tokenizer(self) -> Path:
        """The `tokenizers` JSON file."""
        return self.folder / self.manifest.tokenizer

    @property
    def graph_sha256(self) -> str:
        """Of the graph file, hex; tells builds of one version apart."""
        listed = {file.path: file.sha256 for file in self.manifest.files}
        return listed[self.manifest.graph]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where artefacts are cached; it need not exist."""
    if environ.get("EDGEFLEET_CACHE"):
        return Path(environ["EDGEFLEET_CACHE"])
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "edgefleet"
    home = Path(environ.get("HOME") or Path.home())
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edgefleet"


def resolve_model(name: str, cache: Path) -> Path:
    """Return the folder of the newest version of a model, or of the artefact at a path.

    A name with a slash, or of a folder with a manifest in it, is a path.

    Raises:
        ModelError: `model_unknown`, listing what is there and how to get more.
    """
    direct = Path(name).expanduser()
    if (direct / MANIFEST_NAME).is_file():
        return direct
    versions = _versions(cache / "models" / name) if re.fullmatch(r"[\w.-]+", name) else []
    if not versions:
        raise ModelError(
            f"there is no model {name!r} in {cache / 'models'} ({_what_is_there(cache)})",
            code="model_unknown",
            hint=f"build it: python -m models build {name}",
        )
    return versions[-1]


def load_artefact(folder: Path) -> Artefact:
    """Read the manifest and check size and sha256 of every file it lists.

    Raises:
        ModelError: `model_missing` or `model_damaged`, naming the file.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", code="model_missing", hint=REBUILD_HINT
        ) from error
    except msgspec.MsgspecError as error:
        raise _damaged(path, f"is no manifest: {error}") from error
    if manifest.format != MANIFEST_FORMAT:
        raise ModelError(
            f"{path} has format {manifest.format}, this program reads {MANIFEST_FORMAT}",
            code="model_format",
            hint="take a model and a worker of the same release",
        )
    listed = {file.path for file in manifest.files}
    for needed in (manifest.graph, manifest.tokenizer):
        if needed not in listed:
            raise _damaged(path, f"does not list {needed}")
    for file in manifest.files:
        _check_file(folder, file)
    return Artefact(folder=folder, manifest=manifest)


def _check_file(folder: Path, file: ModelFile) -> None:
    path = folder / file.path
    if ".." in PurePosixPath(file.path).parts:
        raise _damaged(path, "lies outside the artefact")
    try:
        size_bytes = path.stat().st_size
        if size_bytes != file.size_bytes:
            raise _damaged(path, f"has {size_bytes} bytes instead of {file.size_bytes}")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", code="model_missing", hint=REBUILD_HINT
        ) from error
    if digest != file.sha256:
        raise _damaged(path, f"has the sha256 {digest[:12]}… instead of {file.sha256[:12]}…")


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} {what}", code="model_damaged", hint=REBUILD_HINT)


def _versions(folder: Path) -> list[Path]:
    """Return the folders of a model's versions, oldest first: 1.9 is older than 1.10."""
    found = [path.parent for path in folder.glob(f"*/{MANIFEST_NAME}")]
    return sorted(found, key=lambda version: _version_key(version.name))


def _version_key(version: str) -> list[tuple[int, int, str]]:
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.findall(r"\d+|[^\d.]+", version)
    ]


def _what_is_there(cache: Path) -> str:
    names = sorted({path.parent.parent.name for path in cache.glob(f"models/*/*/{MANIFEST_NAME}")})
    return f"there: {', '.join(names)}" if names else "it holds none"
