"""The log says what happened and never what was asked."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from fleet_protocol.log import log_often, set_up_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(monkeypatch: pytest.MonkeyPatch, *, level: str = "info", **fields: object) -> list[str]:
    """Log one event at every level and return what came out."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    set_up_logging(level=level, json=True)
    log = structlog.get_logger()
    for method in ("debug", "info", "warning", "error"):
        getattr(log, method)("job.done", **fields)
    return out.getvalue().splitlines()


def test_a_line_is_one_json_object_with_its_event_and_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = json.loads(lines(monkeypatch, job="01J", attempt=2)[0])
    assert (first["event"], first["level"], first["job"], first["attempt"]) == (
        "job.done",
        "info",
        "01J",
        2,
    )
    assert first["timestamp"].endswith("Z")


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_not_written(
    monkeypatch: pytest.MonkeyPatch, level: str, count: int
) -> None:
    assert len(lines(monkeypatch, level=level)) == count


@pytest.mark.parametrize(
    "key", ["prompt", "messages", "text", "password", "secret", "api_key", "token"]
)
def test_what_must_not_be_logged_leaves_as_its_length(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    written = "\n".join(lines(monkeypatch, **{key: "very private words"}))
    assert "private" not in written
    assert json.loads(written.splitlines()[0])[f"{key}_chars"] == len("very private words")


def test_a_newline_in_a_value_does_not_forge_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written = lines(monkeypatch, worker='x\n{"event":"forged"}')
    assert len(written) == 3
    assert all(json.loads(line)["event"] == "job.done" for line in written)


def test_bound_context_is_on_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.contextvars.bound_contextvars(job="01J"):
        written = lines(monkeypatch)
    assert all(json.loads(line)["job"] == "01J" for line in written)


class Often(msgspec.Struct, kw_only=True):
    """A line that is written often."""

    job: str
    answered_by: str | None = None


class Blabbing(msgspec.Struct):
    """One that should not be."""

    text: str


def often(monkeypatch: pytest.MonkeyPatch, line: msgspec.Struct, **how: object) -> str:
    """Return what is written of such a line."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    set_up_logging(**how)  # type: ignore[arg-type]
    log_often("job.finished", line)
    return stream.getvalue()


def test_a_line_that_is_written_often_is_like_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one = json.loads(often(monkeypatch, Often(job='k"1\n'), json=True))
    log = structlog.get_logger()
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    set_up_logging(json=True)
    log.info("job.finished", job='k"1\n', answered_by=None)
    other = json.loads(stream.getvalue())
    assert one.pop("timestamp")[:10] == other.pop("timestamp")[:10]
    assert one == other


def test_a_line_that_is_written_often_heeds_level_and_form(monkeypatch: pytest.MonkeyPatch) -> None:
    assert often(monkeypatch, Often(job="k1"), json=True, level="warning") == ""
    assert not often(monkeypatch, Often(job="k1"), json=False).startswith("{")
    assert "private" not in often(monkeypatch, Blabbing(text="private"), json=True)


def test_a_line_that_is_written_often_is_captured_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    set_up_logging(json=True)
    with structlog.testing.capture_logs() as captured:
        log_often("job.finished", Often(job="k1"))
    assert [line["job"] for line in captured] == ["k1"]


class _Disk(io.StringIO):
    """A file on a disk that may be full."""

    is_full = False

    def write(self, text: str, /) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_log_on_a_full_disk_loses_lines_and_ends_no_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = _Disk()
    monkeypatch.setattr("sys.stderr", disk)
    set_up_logging(json=True)
    log = structlog.get_logger()
    disk.is_full = True
    log.error("store.unavailable")
    disk.is_full = False
    log.info("store.settled")
    assert [json.loads(line)["event"] for line in disk.getvalue().splitlines()] == ["store.settled"]
