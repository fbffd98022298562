"""Resumable downloads over HTTPS."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from models.cache import hash_file
from models.errors import ChecksumError, SourceError, SourceUnavailableError, writing
from models.progress import Progress

_TIMEOUT_S: Final = 30
_TRIES: Final = 5
_CHUNK_BYTES: Final = 1 << 18
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_RANGE_NOT_SATISFIABLE: Final = 416


def download(url: str, target: Path, *, sha256: str | None, progress: Progress) -> None:
    """Fetch `url` to `target`, going on where an earlier try stopped.

    What has arrived waits in `target` + `.part`. A wrong hash removes it.

    Raises:
        SourceError: The URL is not https (plain http only on loopback).
        SourceUnavailableError: The server does not answer, refuses, or the line keeps breaking.
        ChecksumError: All arrived, and it is something else.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SourceError(f"{url} is not an https URL", hint="use https, or download it yourself")
    partial = target.with_name(f"{target.name}.part")
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
    for turn in range(1, _TRIES + 1):
        try:
            if _fetch_rest(url, partial, progress):
                break
        except urllib.error.HTTPError as error:
            raise _unavailable(url, f"the server answered {error.code}") from error
        except (OSError, HTTPException) as error:
            if turn == _TRIES:
                raise _unavailable(url, str(error)) from error
    else:
        raise _unavailable(url, "the connection kept ending early")
    require_sha256(partial, sha256)
    with writing(target):
        partial.rename(target)


def require_sha256(path: Path, sha256: str | None) -> None:
    """Remove the file and raise ChecksumError unless it has that hash (None: any will do)."""
    if sha256 is None:
        return
    actual = hash_file(path)
    if actual != sha256:
        path.unlink()
        raise ChecksumError(
            f"{path.name} has SHA-256 {actual}, not the expected {sha256}; it was removed",
            hint="fetch again; if it happens again, do not trust the source",
        )


def _fetch_rest(url: str, partial: Path, progress: Progress) -> bool:
    """Append what is missing; return whether the file is complete."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    # S310 twice: `download` let only https through, and http to loopback.
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE:
            raise
        # Nothing is left to fetch, or the file behind the URL changed: the hash will tell.
        error.close()
        return True
    with response:
        resumed = response.status == 206
        total = _total_bytes(response, have if resumed else 0)
        return _append(response, partial, have if resumed else 0, total, progress)


def _append(
    response: HTTPResponse, partial: Path, have: int, total: int | None, progress: Progress
) -> bool:
    """Copy the body behind the first `have` bytes of the file."""
    with writing(partial):
        handle = partial.open("r+b" if have else "wb")
    with handle:
        handle.seek(have)
        while chunk := response.read(_CHUNK_BYTES):
            with writing(partial):
                handle.write(chunk)
            have += len(chunk)
            progress.advance(have, total or 0)
    return total is None or have == total


def _total_bytes(response: HTTPResponse, have: int) -> int | None:
    length = response.headers.get("Content-Length")
    return have + int(length) if length is not None else None


def _unavailable(url: str, why: str) -> SourceUnavailableError:
    return SourceUnavailableError(
        f"{url} could not be fetched: {why}",
        hint="check the connection and run the same command again; it goes on where it stopped",
    )
