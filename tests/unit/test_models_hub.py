"""Checkpoints from the Hub: the real client against a Hub of our own on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from models.artefacts.build import Build
from models.cache import FactoryCache
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_folder, write_tiny_gguf
from models.errors import ExitCode, MissingExtraError, SourceError
from models.progress import SilentProgress
from models.sources.hub import from_hub
from models.sources.optimum_export import export_with_optimum

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one checkpoint, `org/tiny`, from a folder."""

    folder: Path


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        files = sorted(file.name for file in self.server.folder.iterdir())
        if path.startswith("/api/models/org/tiny"):
            info = {"id": "org/tiny", "sha": _COMMIT}
            siblings = [{"rfilename": file} for file in files]
            tree = [
                {"type": "file", "path": file, "oid": "0" * 40, "size": self._size(file)}
                for file in files
            ]
            body = json.dumps(tree if "/tree/" in path else {**info, "siblings": siblings})
            self._send(200, body.encode(), has_body=has_body)
        elif path.startswith("/org/tiny/resolve/") and name in files:
            self._send(200, (self.server.folder / name).read_bytes(), has_body=has_body)
        else:
            self._send(404, b"{}", has_body=has_body)

    def _size(self, file: str) -> int:
        return (self.server.folder / file).stat().st_size

    def _send(self, status: int, body: bytes, *, has_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    gguf = tmp_path / "tiny.gguf"
    write_tiny_gguf(gguf, TinyCheckpoint())
    built = Build(tiny_entry(gguf), FactoryCache(tmp_path / "made"), SilentProgress()).run()
    tokenizer = Path(built.path, "tokenizer.json").read_text("utf-8")
    write_tiny_folder(tmp_path / "hub", TinyCheckpoint(), tokenizer)
    with Hub(("127.0.0.1", 0), _Handler) as server:
        server.folder = tmp_path / "hub"
        thread = Thread(target=server.serve_forever, name="hub")
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def build_from(hub: str, source: str, cache: Path) -> subprocess.CompletedProcess[bytes]:
    """Build in a process of its own: the client reads its endpoint when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "models", "build", "mine", "--from", source, "--json"],
        env={
            **os.environ,
            "HF_ENDPOINT": hub,
            "EDGEFLEET_CACHE": str(cache),
            "HF_HOME": str(cache),
        },
        capture_output=True,
        check=False,
        timeout=100,
    )


def test_a_checkpoint_from_the_hub_becomes_an_artefact(hub: str, tmp_path: Path) -> None:
    done = build_from(hub, "hf:org/tiny", tmp_path / "cache")
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    manifest = Path(msgspec.json.decode(done.stdout)["path"], "manifest.json").read_bytes()
    assert msgspec.json.decode(manifest)["source"].startswith("hf:org/tiny#sha256=")


def test_a_checkpoint_that_the_hub_lacks_is_named(hub: str, tmp_path: Path) -> None:
    done = build_from(hub, "hf:org/other", tmp_path / "cache")
    assert done.returncode == ExitCode.CONFIG, done.stdout + done.stderr
    assert "hf:org/other" in msgspec.json.decode(done.stdout)["error"]["message"]


def test_a_hub_out_of_reach_can_be_tried_again(tmp_path: Path) -> None:
    done = build_from("http://127.0.0.1:9", "hf:org/tiny", tmp_path / "cache")
    assert done.returncode == ExitCode.UNAVAILABLE, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", "tiny", "a/b/c", "../../etc/passwd"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ORG/NAME"):
        from_hub(name, FactoryCache(tmp_path), SilentProgress())


def test_without_the_extra_the_exporter_says_what_to_install(tmp_path: Path) -> None:
    try:
        import optimum  # noqa: F401, PLC0415 - only to see whether it is there
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError) as caught:
            export_with_optimum("org/tiny", tmp_path)
        assert "edgefleet[models]" in caught.value.hint
    else:
        pytest.skip("the extra `models` is installed")
