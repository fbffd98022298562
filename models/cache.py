"""Where the factory keeps its work: complete step folders by content hash, and the artefacts.

A step is written into a temporary folder and renamed when it is complete, so a folder that exists
is whole; its record lists the hashes, so one that was damaged since is noticed and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from models.errors import writing

_RECORD: Final = "step.json"
_CHUNK_BYTES: Final = 1 << 20


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete step left: the SHA-256 of each of its files, by path."""

    files: dict[str, str]


def cache_root(environ: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """Return `$EDGEFLEET_CACHE`, or the platform's place for a user's caches."""
    if named := environ.get("EDGEFLEET_CACHE"):
        return Path(named).expanduser()
    home = Path(environ.get("HOME") or Path.home())
    if platform == "darwin":
        return home / "Library" / "Caches" / "edgefleet"
    base = environ.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore a relative path.
    return (Path(base) if base and Path(base).is_absolute() else home / ".cache") / "edgefleet"


class FactoryCache:
    """The factory's folders below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artefacts = root / "models"
        self.downloads = root / "factory" / "downloads"
        self._steps = root / "factory" / "steps"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until no other build works in this cache, and keep others out."""
        path = self.root / "factory" / "lock"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("ab")
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def step(
        self, name: str, key: str, *, make: Callable[[Path], None], force: bool = False
    ) -> Path:
        """Return the step's complete folder, made by `make(folder)` unless it is there.

        Args:
            name: Of the step.
            key: Hash of everything its outcome depends on.
            make: Fills an empty folder.
            force: Make it again even so.
        """
        final = self._steps / f"{name}-{key[:32]}"
        if not force and is_whole(final):
            return final
        with writing(final), fresh_folder(final) as folder:
            make(folder)
            hashes = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
            (folder / _RECORD).write_bytes(msgspec.json.encode(StepRecord(files=hashes)))
        return final


@contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final` that replaces it when the block ends without error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for orphan in final.parent.glob(f".{final.name}.*"):
        # Left by a build that was killed; the cache's lock says that it is dead.
        shutil.rmtree(orphan, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    folder.chmod(0o755)
    try:
        yield folder
        for path in folder.rglob("*"):
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        folder.rename(final)
        _flush(final.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def step_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a complete step."""
    return msgspec.json.decode((folder / _RECORD).read_bytes(), type=StepRecord).files


def is_whole(folder: Path) -> bool:
    """Tell whether the step is there and every file still has the hash it was left with."""
    try:
        files = step_files(folder)
        return all(hash_file(folder / path) == digest for path, digest in files.items())
    except (OSError, msgspec.DecodeError):
        return False


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_key(*parts: object) -> str:
    """Return one hash, hex, over everything a step depends on."""
    return hashlib.sha256(msgspec.json.encode([str(part) for part in parts])).hexdigest()


def _flush(path: Path) -> None:
    """Force a file or folder to the disk: a rename must not survive what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
