"""What is published is whole, named last, and never changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from click.testing import CliRunner

from fleet_protocol.manifest import MANIFEST_NAME
from models.artefacts.build import Build
from models.artefacts.publish import INDEX_NAME, PublishedIndex, publish
from models.artefacts.shelf import TOKEN_VARIABLE, FolderShelf, HttpShelf, Shelf, open_shelf
from models.cache import FactoryCache, hash_file
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_gguf
from models.cli import cli
from models.errors import (
    AlreadyPublishedError,
    CannotWriteError,
    ExitCode,
    PublishUnavailableError,
    SourceError,
    VerificationError,
)
from models.progress import SilentProgress
from models.proof.verify import read_manifest, verify_artefact

_TOKEN = "secret"


class PutServer(ThreadingHTTPServer):
    """Keeps what is put in memory; cuts the bodies of blobs short while `cut_bytes` is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.cut_bytes: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/fleet"


class _Handler(BaseHTTPRequestHandler):
    server: PutServer

    def do_GET(self) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base's way to name methods

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {_TOKEN}":
            self.send_error(401)
            return
        cut = self.server.cut_bytes if "/blobs/" in self.path else None
        self.server.files[self.path] = body[:cut]
        self.server.puts.append(self.path)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[PutServer]:
    with PutServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_gguf(folder / "tiny.gguf", TinyCheckpoint())
    recipe = tiny_entry(folder / "tiny.gguf")
    report = Build(recipe, FactoryCache(folder / "cache"), SilentProgress()).run()
    return Path(report.path)


@pytest.fixture
def artefact(built: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    shutil.copytree(built, folder)
    return folder


@pytest.fixture(params=["folder", "http"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":
        return FolderShelf(tmp_path / "shelf")
    return HttpShelf(request.getfixturevalue("server").url, token=_TOKEN)


def index_of(shelf: Shelf) -> PublishedIndex:
    text = shelf.read(INDEX_NAME)
    assert text is not None
    return msgspec.json.decode(text, type=PublishedIndex)


def test_who_follows_the_index_finds_every_file(artefact: Path, shelf: Shelf) -> None:
    (artefact / "MODEL_CARD.md").write_text("# tiny")
    report = publish(artefact, shelf, SilentProgress())
    assert report.is_new
    (entry,) = index_of(shelf).models
    assert (entry.name, entry.version) == (report.name, report.version)
    assert entry.sha256 == hash_file(artefact / MANIFEST_NAME)
    assert shelf.read(entry.manifest) == (artefact / MANIFEST_NAME).read_bytes()
    for file in entry.files:
        assert shelf.read(f"blobs/{file.sha256}") == (artefact / file.path).read_bytes()
    assert shelf.read(f"models/{entry.name}/{entry.version}/MODEL_CARD.md") == b"# tiny"


def test_publishing_again_sends_no_model_and_changes_nothing(artefact: Path, shelf: Shelf) -> None:
    publish(artefact, shelf, SilentProgress())
    before = index_of(shelf)
    report = publish(artefact, shelf, SilentProgress())
    assert (report.is_new, report.sent_bytes) == (False, 0)
    assert index_of(shelf) == before


def with_version(artefact: Path, version: str, tokenizer: str | None = None) -> None:
    manifest = read_manifest(artefact)
    files = manifest.files
    if tokenizer is not None:
        path = artefact / manifest.tokenizer
        path.write_text(tokenizer)
        files = tuple(
            msgspec.structs.replace(file, sha256=hash_file(path), size_bytes=len(tokenizer))
            if file.path == manifest.tokenizer
            else file
            for file in files
        )
    changed = msgspec.structs.replace(manifest, version=version, files=files)
    (artefact / MANIFEST_NAME).write_bytes(msgspec.json.encode(changed))


def test_published_bytes_are_never_changed(artefact: Path, shelf: Shelf) -> None:
    version = publish(artefact, shelf, SilentProgress()).version
    before = index_of(shelf)
    with_version(artefact, version, "{}")
    with pytest.raises(AlreadyPublishedError, match="other bytes"):
        publish(artefact, shelf, SilentProgress())
    assert index_of(shelf) == before


def test_a_manifest_that_no_index_names_yet_is_not_changed_either(
    artefact: Path, shelf: Shelf
) -> None:
    version = publish(artefact, shelf, SilentProgress()).version
    shelf.put(INDEX_NAME, msgspec.json.encode(PublishedIndex()))
    with_version(artefact, version, "{}")
    with pytest.raises(AlreadyPublishedError):
        publish(artefact, shelf, SilentProgress())


def test_what_the_index_names_is_not_changed_where_its_manifest_is_gone(
    artefact: Path, tmp_path: Path
) -> None:
    shelf = FolderShelf(tmp_path / "shelf")
    report = publish(artefact, shelf, SilentProgress())
    (tmp_path / "shelf" / report.manifest).unlink()
    with_version(artefact, report.version, "{}")
    with pytest.raises(AlreadyPublishedError):
        publish(artefact, shelf, SilentProgress())


def test_another_version_shares_the_files_that_are_equal(artefact: Path, shelf: Shelf) -> None:
    publish(artefact, shelf, SilentProgress())
    with_version(artefact, "2.0.0", "{}")
    report = publish(artefact, shelf, SilentProgress())
    assert (report.is_new, report.sent_bytes) == (True, 2)
    assert [entry.version for entry in index_of(shelf).models][-1] == "2.0.0"
    assert len(index_of(shelf).models) == 2


def test_a_damaged_artefact_is_not_published(artefact: Path, shelf: Shelf) -> None:
    (artefact / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        publish(artefact, shelf, SilentProgress())
    assert shelf.read(INDEX_NAME) is None


def test_a_cut_off_upload_is_noticed_and_goes_on_where_it_stopped(
    artefact: Path, server: PutServer
) -> None:
    shelf = HttpShelf(server.url, token=_TOKEN)
    server.cut_bytes = 1000
    with pytest.raises(PublishUnavailableError, match="1000 bytes of"):
        publish(artefact, shelf, SilentProgress())
    assert f"/fleet/{INDEX_NAME}" not in server.files
    server.cut_bytes = None
    whole = read_manifest(artefact).files[1]
    server.files[f"/fleet/blobs/{whole.sha256}"] = (artefact / whole.path).read_bytes()
    server.puts.clear()
    assert publish(artefact, shelf, SilentProgress()).is_new
    assert f"/fleet/blobs/{whole.sha256}" not in server.puts
    assert server.puts[-1] == f"/fleet/{INDEX_NAME}"


def test_a_refused_or_silent_server_is_named_and_the_token_is_not(
    artefact: Path, server: PutServer
) -> None:
    with pytest.raises(PublishUnavailableError, match="401") as caught:
        publish(artefact, HttpShelf(server.url, token="wrong"), SilentProgress())
    assert "wrong" not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(PublishUnavailableError, match="cannot publish"):
        publish(artefact, HttpShelf("http://127.0.0.1:1", token=_TOKEN), SilentProgress())


def test_a_token_does_not_travel_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot publish to"):
        open_shelf("http://models.example/fleet", {TOKEN_VARIABLE: _TOKEN})
    assert isinstance(open_shelf("https://models.example/fleet", {}), HttpShelf)
    assert isinstance(open_shelf(str(tmp_path), {}), FolderShelf)


def test_a_folder_that_cannot_be_written_is_named(artefact: Path) -> None:
    with pytest.raises(CannotWriteError, match="/dev/null"):
        publish(artefact, FolderShelf(Path("/dev/null/shelf")), SilentProgress())


def test_a_published_folder_holds_no_half_files(artefact: Path, tmp_path: Path) -> None:
    publish(artefact, FolderShelf(tmp_path / "shelf"), SilentProgress())
    assert [path.name for path in (tmp_path / "shelf").rglob(".*")] == []


def test_the_command_publishes_and_refuses_with_exit_code_nine(
    artefact: Path, tmp_path: Path
) -> None:
    words = ["publish", str(artefact), str(tmp_path / "shelf"), "--json"]
    first = CliRunner().invoke(cli, words)
    assert (first.exit_code, msgspec.json.decode(first.stdout)["is_new"]) == (ExitCode.OK, True)
    verify_artefact(artefact)
    with_version(artefact, read_manifest(artefact).version, "{}")
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == ExitCode.PUBLISHED
    assert msgspec.json.decode(again.stdout)["error"]["code"] == "already_published"
