"""An artefact in its sealed form: its manifest, and its files encrypted with a key of the fleet."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

from fleet_pki.sealing import KeyRing, open_file, seal_file
from fleet_protocol.manifest import MANIFEST_NAME, SEALED_SUFFIX, Manifest, ModelFile
from models.cache import fresh_folder, hash_file
from models.errors import CannotWriteError, VerificationError, writing
from models.proof.verify import read_manifest

_FOR_PEOPLE: Final = ("MODEL_CARD.md", "evaluation.json")


def seal_artefact(folder: Path, target: Path, ring: KeyRing) -> Manifest:
    """Write the sealed form of an artefact to `target`, in one move, and return its manifest.

    Each file is opened again and compared with the manifest before it counts.

    Raises:
        VerificationError: It is no artefact of a language model, or its files are not its own.
        CannotWriteError: The disk is full, read-only or not ours; or something else is there.
    """
    manifest = read_manifest(folder)
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise CannotWriteError(
            f"{target} is there and is no artefact", hint="name a new folder with --out"
        )
    for file in manifest.files:
        if not (folder / file.path).is_file() or hash_file(folder / file.path) != file.sha256:
            raise VerificationError(
                f"{folder / file.path} is missing or not what the manifest says",
                hint="name a folder that `python -m models build` made, not a sealed one",
            )
    with writing(target), fresh_folder(target) as fresh:
        for file in manifest.files:
            _seal(folder, fresh, file, ring)
        for name in (*_FOR_PEOPLE, MANIFEST_NAME):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, fresh / name)
    return manifest


def _seal(folder: Path, fresh: Path, file: ModelFile, ring: KeyRing) -> None:
    sealed = fresh / f"{file.path}{SEALED_SUFFIX}"
    sealed.parent.mkdir(parents=True, exist_ok=True)
    seal_file(folder / file.path, sealed, ring)
    if hashlib.sha256(open_file(sealed, ring)).hexdigest() != file.sha256:
        raise VerificationError(f"{file.path} does not come back as it was", hint="try again")
