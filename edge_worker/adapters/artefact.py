"""Model artefacts on this machine: where they lie, and whether their bytes are the right ones.

The cache folder is `$EDGEFLEET_CACHE`, else `edgefleet` in the platform's cache folder; an artefact
lies in `models/NAME/VERSION/` below it.

An artefact may hold graphs for several kinds of processor (`Manifest.variants`). To a graph belong
the file itself, files whose name begins with its path and a dot (`model.onnx.data`), and all of its
folder if no other graph lies there; what belongs to no graph, all need. A board needs only the
files of the graph it runs: those of the others may be missing.

A file may be there in its sealed form instead (`model.onnx.data.sealed`): then `unseal` opens it
into memory, and its plain bytes are on no disk.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from edge_worker.core.tuning import DEFAULT_VARIANT, all_variants
from edge_worker.ports import ModelError
from fleet_protocol.codec import UNREADABLE
from fleet_protocol.manifest import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    SEALED_SUFFIX,
    Manifest,
    ModelFile,
    Variant,
)

if TYPE_CHECKING:
    from fleet_pki.sealing import KeyRing

REBUILD_HINT = "build it again with `python -m models build NAME`, or fetch it again"


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """A model's folder, its manifest read; `load_artefact` also verifies the files.

    Attributes:
        variant: Which of its graphs; `default` is the manifest's own.
        opened: The plain bytes of those files that are sealed on the disk, by path.
    """

    folder: Path
    manifest: Manifest
    variant: str = DEFAULT_VARIANT
    opened: dict[str, bytearray] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Artefact({self.folder}, {self.variant}, opened={len(self.opened)})"

    @property
    def graph(self) -> Path:
        """The ONNX graph file."""
        return self.folder / _variant_of(self.manifest, self.variant).graph

    @property
    def graph_bytes(self) -> bytearray | None:
        """The graph, where it is sealed on the disk."""
        return self.opened.get(_variant_of(self.manifest, self.variant).graph)

    @property
    def weights(self) -> dict[str, bytearray]:
        """What lies beside the graph and is sealed on the disk, by its path from there."""
        graph = PurePosixPath(_variant_of(self.manifest, self.variant).graph)
        others = {str(graph), self.manifest.tokenizer}
        return {
            str(PurePosixPath(path).relative_to(graph.parent)): data
            for path, data in self.opened.items()
            if path not in others and PurePosixPath(path).is_relative_to(graph.parent)
        }

    @property
    def tokenizer(self) -> Path:
        """The `tokenizers` JSON file."""
        return self.folder / self.manifest.tokenizer

    @property
    def tokenizer_bytes(self) -> bytearray | None:
        """The same, where it is sealed on the disk."""
        return self.opened.get(self.manifest.tokenizer)

    @property
    def graph_sha256(self) -> str:
        """Of the graph file, hex; tells builds of one version apart."""
        listed = {file.path: file.sha256 for file in self.manifest.files}
        return listed[_variant_of(self.manifest, self.variant).graph]


def cache_folder(environ: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """Return where artefacts are cached, as the factory does; it need not exist."""
    if named := environ.get("EDGEFLEET_CACHE"):
        return Path(named).expanduser()
    home = Path(environ.get("HOME") or Path.home())
    if platform == "darwin":
        return home / "Library" / "Caches" / "edgefleet"
    base = environ.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore a relative path.
    return (Path(base) if base and Path(base).is_absolute() else home / ".cache") / "edgefleet"


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
            hint=f"name another one, or build it: python -m models build {name}",
        )
    return versions[-1]


def load_artefact(
    folder: Path, *, variant: str = DEFAULT_VARIANT, key_file: str | None = None
) -> Artefact:
    """Read the manifest and check size and sha256 of every file that this graph needs.

    Raises:
        ModelError: `model_missing` or `model_damaged`, naming the file; `variant_unknown`;
            `model_sealed`, `unknown_key` or `seal_broken`.
    """
    artefact = unseal(find_artefact(folder, variant=variant), key_file)
    check_artefact(artefact)
    return artefact


def find_artefact(folder: Path, *, variant: str = DEFAULT_VARIANT) -> Artefact:
    """Read the manifest; the files are for `check_artefact`.

    Raises:
        ModelError: `model_missing`, `model_damaged` or `model_format`: the manifest;
            `variant_unknown`.
    """
    manifest = read_manifest(folder)
    _variant_of(manifest, variant)
    return Artefact(folder=folder, manifest=manifest, variant=variant)


def check_artefact(artefact: Artefact) -> None:
    """Check size and sha256 of every file that its graph needs.

    Raises:
        ModelError: `model_missing` or `model_damaged`, naming the file.
    """
    manifest = artefact.manifest
    for file in files_of(manifest, _variant_of(manifest, artefact.variant)):
        check_file(artefact.folder, file, artefact.opened.get(file.path))


def unseal(artefact: Artefact, key_file: str | None) -> Artefact:
    """Return the artefact with what is sealed of it opened in memory; nothing, if nothing is.

    Raises:
        ModelError: `model_sealed`: no key is named; `unknown_key` or `seal_broken`.
        ConfigError: The key file cannot be used.
    """
    manifest, folder = artefact.manifest, artefact.folder
    files = files_of(manifest, _variant_of(manifest, artefact.variant))
    sealed = {file.path: folder / f"{file.path}{SEALED_SUFFIX}" for file in files
              if not (folder / file.path).exists()}  # fmt: skip
    sealed = {path: file for path, file in sealed.items() if file.is_file()}
    if not sealed:
        return artefact
    if key_file is None:
        raise ModelError(
            f"{manifest.name} {manifest.version} is sealed, and no key is named",
            code="model_sealed",
            hint="set model_key_file, in a service to a credential of systemd's (docs/security.md)",
        )
    # Only here: a board whose models are not sealed needs no cryptography for them.
    from fleet_pki.sealing import KeyRing  # noqa: PLC0415 - see above

    ring = KeyRing.read(Path(key_file))
    opened = {path: _open(file, ring) for path, file in sealed.items()}
    return msgspec.structs.replace(artefact, opened=opened)


def _open(file: Path, ring: KeyRing) -> bytearray:
    from fleet_pki.sealing import SealError, open_file  # noqa: PLC0415 - see unseal

    try:
        return open_file(file, ring)
    except SealError as error:
        raise ModelError(str(error), code=error.code, hint=error.hint or REBUILD_HINT) from error
    except OSError as error:
        raise _unreadable(file, error) from error


def present_variants(folder: Path, manifest: Manifest) -> tuple[Variant, ...]:
    """Return the graphs all of whose files are here, whatever their bytes."""
    return tuple(
        variant
        for variant in all_variants(manifest)
        if all(
            (folder / file.path).is_file() or (folder / f"{file.path}{SEALED_SUFFIX}").is_file()
            for file in files_of(manifest, variant)
        )
    )


def files_of(manifest: Manifest, variant: Variant) -> tuple[ModelFile, ...]:
    """Return the files that a graph needs: its own, and those that belong to no graph."""
    others = {other.graph for other in all_variants(manifest)} - {variant.graph}
    graphs = others | {variant.graph}
    return tuple(
        file
        for file in manifest.files
        if _belongs(file.path, variant.graph, graphs)
        or not any(_belongs(file.path, other, graphs) for other in others)
    )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest; it lists what the program needs.

    Raises:
        ModelError: `model_missing`, `model_damaged` or `model_format`.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", code="model_missing", hint=REBUILD_HINT
        ) from error
    except UNREADABLE as error:
        raise _damaged(path, f"is no manifest: {error}") from error
    if manifest.format != MANIFEST_FORMAT:
        raise ModelError(
            f"{path} has format {manifest.format}, this program reads {MANIFEST_FORMAT}",
            code="model_format",
            hint="take a model and a worker of the same release",
        )
    listed = {file.path for file in manifest.files}
    for needed in (*(each.graph for each in all_variants(manifest)), manifest.tokenizer):
        if needed not in listed:
            raise _damaged(path, f"does not list {needed}")
    return manifest


def _variant_of(manifest: Manifest, name: str) -> Variant:
    known = {variant.name: variant for variant in all_variants(manifest)}
    if name not in known:
        raise ModelError(
            f"{manifest.name} {manifest.version} has no variant {name!r}",
            code="variant_unknown",
            hint=f"set `variant` to one of: {', '.join(known)}; or leave it to the worker",
        )
    return known[name]


def _belongs(path: str, graph: str, graphs: AbstractSet[str]) -> bool:
    """Tell whether a file is part of a graph rather than of the artefact."""
    if path == graph or path.startswith(f"{graph}."):
        return True
    folder = PurePosixPath(graph).parent
    beside = [other for other in graphs if PurePosixPath(other).is_relative_to(folder)]
    owns_folder = folder != PurePosixPath() and beside == [graph]
    return owns_folder and PurePosixPath(path).is_relative_to(folder)


def check_file(folder: Path, file: ModelFile, opened: bytearray | None = None) -> None:
    """Raise ModelError unless the file is there, or was opened, with its size and hash."""
    path, listed = folder / file.path, PurePosixPath(file.path)
    if listed.is_absolute() or ".." in listed.parts:
        raise _damaged(path, "lies outside the artefact")
    try:
        size_bytes = path.stat().st_size if opened is None else len(opened)
        if size_bytes != file.size_bytes:
            raise _damaged(path, f"has {size_bytes} bytes instead of {file.size_bytes}")
        digest = _sha256(path) if opened is None else hashlib.sha256(opened).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest != file.sha256:
        raise _damaged(path, f"has the sha256 {digest[:12]}… instead of {file.sha256[:12]}…")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{path} cannot be read: {error.strerror}", code="model_missing", hint=REBUILD_HINT
    )


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
