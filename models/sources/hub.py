"""Checkpoints from the Hugging Face Hub, by its own client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from models.cache import FactoryCache, hash_file, hash_key
from models.errors import MissingExtraError, SourceError, SourceUnavailableError, writing
from models.progress import Progress

CHECKPOINT_FILES: Final = ("*.json", "*.safetensors", "*.jinja")
"""What of a checkpoint folder counts: weights, configuration, tokenizer, chat template."""
_NAME: Final = re.compile(r"^([\w.-]+/[\w.-]+)(?:@([\w./-]+))?$")


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A source on this disk.

    Attributes:
        path: A GGUF file, or a folder with a Hugging Face checkpoint.
        sha256: Of its content.
        origin: Where it came from, for the manifest.
    """

    path: Path
    sha256: str
    origin: str


def hash_checkpoint(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of a checkpoint's files."""
    files = sorted(file for kind in CHECKPOINT_FILES for file in folder.glob(kind))
    return hash_key(*((file.name, hash_file(file)) for file in files))


def from_hub(name: str, cache: FactoryCache, progress: Progress) -> Fetched:
    """Download `ORG/NAME` or `ORG/NAME@REVISION`; what is here already is not fetched again.

    Raises:
        SourceError: Not such a name, or the Hub has no such checkpoint.
        SourceUnavailableError: The Hub cannot be reached now.
    """
    match = _NAME.match(name)
    if match is None:
        raise SourceError(f"hf:{name} is not ORG/NAME or ORG/NAME@REVISION")
    try:
        from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - slow, rarely used
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "sources from the Hub need huggingface_hub", hint="pip install 'edgefleet[models]'"
        ) from error
    folder = cache.downloads / f"hf-{hash_key(name)[:16]}"
    progress.step("fetch", f"hf:{name}")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(
            match[1], revision=match[2], local_dir=folder, allow_patterns=list(CHECKPOINT_FILES)
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise SourceError(
            f"the Hub has no hf:{name}", hint="check the name; private ones need `hf auth login`"
        ) from error
    except Exception as error:
        # The client lets its HTTP library's errors through, which have no base of their own.
        raise SourceUnavailableError(
            f"hf:{name} could not be fetched: {error}",
            hint="check the connection and run the same command again; it goes on where it stopped",
        ) from error
    digest = hash_checkpoint(folder)
    return Fetched(path=folder, sha256=digest, origin=f"hf:{name}#sha256={digest}")
