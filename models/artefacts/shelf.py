"""Where artefacts are published: a folder, or a server that takes PUT."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import urlsplit

from models.errors import PublishUnavailableError, SourceError, writing

TOKEN_VARIABLE: Final = "EDGEFLEET_PUBLISH_TOKEN"  # noqa: S105 - the variable's name
_TIMEOUT_S: Final = 60
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_FILE_MODE: Final = 0o644


class Shelf(Protocol):
    """Files by their path below one root; what `put` returns from is whole."""

    def read(self, path: str) -> bytes | None:
        """Return a small file; None: there is none."""
        ...

    def size_bytes(self, path: str) -> int | None:
        """Return a file's size; None: there is none, or nobody knows."""
        ...

    def put(self, path: str, content: bytes | Path) -> None:
        """Write a file in one move, over the one that is there.

        Raises:
            CannotWriteError, PublishUnavailableError: It is not written.
        """
        ...


def open_shelf(place: str, environ: Mapping[str, str]) -> Shelf:
    """Return the shelf at a URL or in a folder.

    Raises:
        SourceError: Plain http to another machine, which would show the token to the network.
    """
    scheme, host = urlsplit(place).scheme, urlsplit(place).hostname
    if scheme == "https" or (scheme == "http" and host in _LOOPBACK):
        return HttpShelf(place, token=environ.get(TOKEN_VARIABLE))
    if "://" in place:
        raise SourceError(
            f"cannot publish to {place}", hint="name a folder or an https URL (http on loopback)"
        )
    return FolderShelf(Path(place).expanduser())


class FolderShelf:
    """A folder, e.g. one that a web server shows."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """Return a small file."""
        with writing(self._root):
            file = self._root / path
            return file.read_bytes() if file.is_file() else None

    def size_bytes(self, path: str) -> int | None:
        """Return a file's size."""
        file = self._root / path
        return file.stat().st_size if file.is_file() else None

    def put(self, path: str, content: bytes | Path) -> None:
        """Write beside the file, flush, rename."""
        target = self._root / path
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".publish.", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as file, _opened(content) as stream:
                    shutil.copyfileobj(stream, file)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(_FILE_MODE)
                Path(name).replace(target)
            finally:
                Path(name).unlink(missing_ok=True)


class HttpShelf:
    """A server that understands GET, HEAD and PUT; `token` goes along as a bearer's.

    A file that was cut off has another size than the one that is put, so it is put again.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def read(self, path: str) -> bytes | None:
        """Return a small file."""
        found = self._ask("GET", path)
        return None if found is None else found[0]

    def size_bytes(self, path: str) -> int | None:
        """Return a file's size, where the server states it."""
        found = self._ask("HEAD", path)
        return int(found[1]) if found is not None and found[1] else None

    def put(self, path: str, content: bytes | Path) -> None:
        """Put it, then see that it is there as a whole."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with _opened(content) as stream:
            self._ask("PUT", path, stream, {"Content-Length": str(size)})
        stored = self.size_bytes(path)
        if stored != size:
            raise self._unavailable(path, f"it keeps {stored} bytes of {size}")

    def _ask(
        self,
        method: str,
        path: str,
        body: BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str | None] | None:
        """Return the answer's body and stated length; None: not found."""
        request = urllib.request.Request(  # noqa: S310 - https, or http on loopback
            f"{self._url}/{path}",
            data=body,
            headers={**self._headers, **(headers or {})},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - same
                return answer.read(), answer.headers.get("Content-Length")
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_FOUND and method != "PUT":
                    return None
                raise self._unavailable(path, f"the server answered {error.code}") from error
        except (OSError, HTTPException) as error:
            raise self._unavailable(path, str(error)) from error

    def _unavailable(self, path: str, why: str) -> PublishUnavailableError:
        return PublishUnavailableError(
            f"cannot publish {self._url}/{path}: {why}",
            hint=f"check the server and ${TOKEN_VARIABLE}, then run the same command again",
        )


@contextmanager
def _opened(content: bytes | Path) -> Iterator[BinaryIO]:
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
        yield stream
