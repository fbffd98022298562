"""Files that hold secrets: for their owner alone from their first byte, and never half."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from fleet_protocol.errors import ConfigError

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
FOLDER_MODE: Final = 0o700


def make_private(path: Path) -> None:
    """Make an empty file for its owner alone, if there is none yet."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE))


def make_folder(path: Path) -> None:
    """Make a folder for its owner alone, if there is none yet.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Write a file so that a reader sees the old one or the new one, also after a power cut.

    On return it is the new one for good: what follows may rely on it, such as a token spent on a
    certificate for the key in this file.

    Raises:
        ConfigError: It cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            fresh.replace(path)
            keep_names(path.parent)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def keep_names(folder: Path) -> None:
    """Have the disk keep what was renamed in a folder: a flushed file may still lose its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, *, hint: str) -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=hint) from error


def read_secret(path: Path) -> str:
    """Return the first line of a file, which nobody else may read.

    Raises:
        ConfigError: It cannot be read, is empty, or others may read it.
    """
    data = read_file(path, hint="name the file that holds the secret")
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others", code="secret_exposed", hint=f"chmod 600 {path}"
        )
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].strip():
        raise ConfigError(f"{path} is empty", hint="put the secret on its first line")
    return lines[0].strip()


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror}", hint="check the path and who may write it"
    )
