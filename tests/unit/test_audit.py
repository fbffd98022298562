"""The audit log: whatever is done to it afterwards is found."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.adapters import audit_file
from cloud_dispatcher.adapters.audit_file import AuditFile, AuditSettings
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from fleet_cli.root import root
from fleet_protocol import audit, audit_folder
from fleet_protocol import messages as m
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError
from fleet_protocol.topics import Role
from tests.unit.engine_desk import ANSWER, Desk

KEY = bytes(range(32))
DAY_MS = 86_400_000
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2


def chain(
    count: int, *, key: bytes = KEY, after: str = audit.GENESIS, first: int = 1
) -> list[bytes]:
    """Return lines, each with its end."""
    seal, lines = after, []
    for seq in range(first, first + count):
        entry = audit.AuditEntry(seq=seq, at_ms=seq, what="job.accepted", about={"id": str(seq)})
        seal, line = audit.sealed(key, seal, entry)
        lines.append(line + b"\n")
    return lines


def look(lines: list[bytes], *, noted: str = "") -> audit.Verdict:
    return audit.verify([("a.log", b"".join(lines))], KEY, noted=noted)


def test_a_log_as_it_was_written_is_good() -> None:
    verdict = look(chain(5))
    assert (verdict.ok, verdict.lines, verdict.first_ms, verdict.last_ms) == (True, 5, 1, 5)
    assert look([]) == audit.Verdict(ok=True, lines=0)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_flipped_byte_is_found(at: int, flip: int) -> None:
    data = bytearray(b"".join(chain(4)))
    at %= len(data)
    data[at] ^= flip
    verdict = audit.verify([("a.log", bytes(data))], KEY)
    # Without its very last byte, the end of a line, the log looks as a power cut leaves it.
    assert not verdict.ok or (at == len(data) - 1 and verdict.torn)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda x: x[:2] + x[3:], "a.log:3"),
        (lambda x: [x[1], x[0], *x[2:]], "a.log:1"),
        (lambda x: [*x[:3], x[2], *x[3:]], "a.log:4"),
        (lambda x: x[1:], "a.log:1"),
        (
            lambda x: [*x[:4], *chain(1, key=bytes(32), after=x[3][:64].decode(), first=5)],
            "a.log:5",
        ),
        (lambda x: [*x[:2], b"garbage\n", *x[2:]], "a.log:3"),
    ],
)
def test_lines_taken_out_moved_doubled_or_added_are_found(
    change: Callable[[list[bytes]], list[bytes]], where: str
) -> None:
    verdict = look(change(chain(5)))
    assert (verdict.ok, verdict.where) == (False, where)


def test_an_end_that_was_taken_off_is_found_by_a_noted_seal() -> None:
    lines = chain(5)
    noted = lines[4][:64].decode()
    assert look(lines[:3]).ok
    assert look(lines, noted=noted).ok
    verdict = look(lines[:3], noted=noted)
    assert not verdict.ok
    assert "taken off" in verdict.why


def test_a_prompt_is_known_again_by_who_has_the_key_alone() -> None:
    assert audit.digest(KEY, "hello") == audit.digest(KEY, "hello")
    assert audit.digest(KEY, "hello") != audit.digest(bytes(32), "hello")
    assert "hello" not in audit.digest(KEY, "hello")


class Log:
    """An audit file in a folder, at a time that the test tells."""

    def __init__(self, folder: Path, *, keep_days: int = 180) -> None:
        self.folder = folder
        self.now_ms = NOON_MS
        self.settings = AuditSettings(folder=str(folder), keep_days=keep_days)

    def open(self) -> AuditFile:
        return AuditFile(self.settings, wall_ms=lambda: self.now_ms)

    async def run(self, *what: str) -> None:
        async with self.open() as file:
            for name in what:
                file.note(name, {"a": 1})

    @property
    def files(self) -> list[tuple[str, bytes]]:
        return [(path.name, path.read_bytes()) for path in sorted(self.folder.glob("*.log"))]

    def verify(self) -> audit.Verdict:
        return audit.verify(self.files, audit.parse_key((self.folder / "audit.key").read_text()))

    @property
    def entries(self) -> list[audit.AuditEntry]:
        lines = [line for _, data in self.files for line in data.splitlines()]
        return [audit.read_line(line)[1] for line in lines]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit")


async def test_the_chain_goes_on_over_restarts_and_days(log: Log) -> None:
    await log.run("x")
    log.now_ms += DAY_MS
    await log.run("y")
    assert [name for name, _ in log.files] == ["2024-10-04.log", "2024-10-05.log"]
    assert [entry.seq for entry in log.entries] == [1, 2, 3, 4, 5, 6]
    assert log.verify().ok
    assert all(path.stat().st_mode & 0o077 == 0 for path in log.folder.iterdir())


async def test_the_chain_holds_where_the_clock_was_set_back_over_midnight(log: Log) -> None:
    await log.run("x")
    log.now_ms += 100 * DAY_MS
    await log.run("by a clock that was far ahead")
    async with log.open() as file:
        file.note("y", {})
        await file._flush()
        log.now_ms -= 99 * DAY_MS
        file.note("z", {})
    assert log.verify().ok
    await log.run("after a restart")
    log.now_ms += DAY_MS
    await log.run("and the day after")
    assert log.verify().ok
    assert [entry.seq for entry in log.entries] == list(range(1, len(log.entries) + 1))


async def test_a_clock_that_is_years_ahead_for_a_moment_costs_no_line(log: Log) -> None:
    await log.run("x")
    log.now_ms += 3_000 * DAY_MS
    await log.run("by a clock that was far ahead")
    log.now_ms -= 2_999 * DAY_MS
    await log.run("y")
    assert [entry.what for entry in log.entries if len(entry.what) == 1] == ["x", "y"]
    assert log.verify().ok


async def test_a_disk_that_fails_after_the_write_doubles_no_line(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, fails = os.fdatasync, [True]

    def fdatasync(descriptor: int) -> None:
        if fails:
            fails.clear()
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    async with log.open() as file:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        file.note("x", {})
        await file._flush()
        await file._flush()
    assert [entry.what for entry in log.entries] == ["started", "x", "stopped"]
    assert log.verify().ok


async def test_half_a_line_after_a_power_cut_is_cut_off_and_said(log: Log) -> None:
    await log.run("x")
    path = log.folder / log.files[-1][0]
    with path.open("ab") as file:
        file.write(b"a1b2c3 {")
    assert log.verify().torn
    await log.run("y")
    assert log.verify().ok
    assert not log.verify().torn
    started = [entry for entry in log.entries if entry.what == "started"]
    assert started[-1].about == {"torn_bytes": 8}


async def test_old_files_go_and_the_rest_still_proves_itself(log: Log) -> None:
    log.settings = AuditSettings(folder=str(log.folder), keep_days=2)
    for _ in range(6):
        await log.run("x")
        log.now_ms += DAY_MS
    assert len(log.files) == 3
    assert [entry.about["file"] for entry in log.entries if entry.what == "pruned"]
    assert log.verify().ok
    name, data = log.files[0]
    (log.folder / name).write_bytes(data.replace(b'"a":1', b'"a":2', 1))
    assert log.verify().where == f"{name}:3"
    (log.folder / name).unlink()
    assert not log.verify().ok, "a whole file was taken away"


async def test_a_file_that_was_to_go_and_did_not_does_no_harm(log: Log) -> None:
    log.settings = AuditSettings(folder=str(log.folder), keep_days=1)
    await log.run("x")
    old = log.files[0]
    log.now_ms += 3 * DAY_MS
    await log.run("y")
    (log.folder / old[0]).write_bytes(old[1])
    assert log.verify().ok


async def test_a_full_disk_costs_nothing_as_long_as_there_is_memory(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with log.open() as file:
        is_full = True

        def write(descriptor: int, data: bytes) -> int:
            return os.pwrite(descriptor, data[:10], 0) if is_full else real(descriptor, data)

        real = os.write
        monkeypatch.setattr(audit_folder.os, "write", write)
        file.note("x", {})
        await file._flush()
        assert log.verify().ok
        assert [entry.what for entry in log.entries] == ["started"]
        is_full = False
    assert [entry.what for entry in log.entries] == ["started", "x", "stopped"]
    assert log.verify().ok


async def test_what_is_lost_for_good_is_counted(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_file, "_WAITING_MOST", 3)
    async with log.open() as file:
        for _ in range(5):
            file.note("x", {})
        await file._flush()
        file.note("y", {})
    assert [entry.what for entry in log.entries] == [
        "started",
        "x",
        "x",
        "x",
        "lost",
        "y",
        "stopped",
    ]
    assert next(entry.about for entry in log.entries if entry.what == "lost") == {"entries": 2}


async def test_who_asked_and_what_became_of_it_is_there_and_no_text(log: Log) -> None:
    desk = Desk()
    desk.worker()
    request = m.AdminRequest(req=m.Id("r1"), op=m.AdminOp.JOB_CANCEL, job=m.Id("K1"))
    async with log.open() as file:
        for event in (
            e.JobSubmitted(
                key=m.JobKey("K1"),
                device=m.DeviceId("d1"),
                id=m.JobId("1"),
                submit=m.JobSubmit(prompt="the secret plan"),
                reply=ReplyTo(),
            ),
            e.DoneReceived(
                worker=m.WorkerId("w1"),
                job=m.JobKey("K1"),
                done=m.JobDone(attempt=1, answer=ANSWER),
            ),
            e.AdminAsked(admin="ann", request=request),
        ):
            file.observe(event, desk.handle(event), desk.now_ms)
    whole = b"".join(data for _, data in log.files)
    assert b"secret plan" not in whole
    assert b"blue" not in whole
    accepted, finished, admin = log.entries[1:4]
    assert accepted.about["prompt"] == audit.digest(
        audit.parse_key((log.folder / "audit.key").read_text()), "the secret plan"
    )
    assert (accepted.about["device"], accepted.about["chars"]) == ("d1", 15)
    assert (finished.about["status"], finished.about["worker"]) == ("ok", "w1")
    who = {"admin": "ann", "role": "admin"}
    assert admin.about == {**who, "op": "jobs.cancel", "req": "r1", "job": "K1"}


async def test_a_request_that_was_refused_is_there_with_its_code(log: Log) -> None:
    request = m.AdminRequest(req=m.Id("r1"), op=m.AdminOp.JOB_PURGE, job=m.Id("K1"))
    async with log.open() as file:
        file.asked(Identity(role=Role.VIEWER, id="wall"), request, "not_authorized")
    about = {"admin": "wall", "role": "viewer", "op": "jobs.purge", "req": "r1", "job": "K1"}
    assert log.entries[1].about == {**about, "code": "not_authorized"}


async def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    async with AuditFile(AuditSettings()) as file:
        file.note("x", {})
        who = Identity(role=Role.ADMIN, id="ann")
        file.asked(who, m.AdminRequest(req=m.Id("r"), op=m.AdminOp.COSTS))
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("words", ["", "zz", "00" * 31])
def test_a_bad_key_is_refused(log: Log, words: str) -> None:
    log.folder.mkdir()
    (log.folder / "audit.key").write_text(words)
    with pytest.raises(ConfigError, match="no audit key"):
        asyncio.run(log.run())


async def test_two_programs_do_not_write_one_log(log: Log) -> None:
    async with log.open():
        with pytest.raises(ConfigError) as caught:
            await log.run("x")
    assert caught.value.code == "audit_in_use"
    await log.run("y")
    assert log.verify().ok


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        asyncio.run(Log(tmp_path / "file").run())
    assert caught.value.code == "audit_unwritable"


def fleet(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(root, ["audit", *words], standalone_mode=False)
    return result.return_value or 0, result.output


def test_the_command_names_the_line(log: Log) -> None:
    asyncio.run(log.run("x", "y"))
    code, text = fleet("verify", str(log.folder))
    assert (code, "4 lines are as they were written" in text) == (0, True)
    path = log.folder / log.files[0][0]
    path.write_bytes(path.read_bytes().replace(b'"y"', b'"z"'))
    code, text = fleet("verify", str(log.folder), "--json")
    assert code == 1
    assert json.loads(text)["where"] == f"{path.name}:3"


def test_the_log_is_exported_by_day_and_kind(log: Log) -> None:
    asyncio.run(log.run("x", "y"))
    lines = [json.loads(line) for line in fleet("export", str(log.folder))[1].splitlines()]
    assert [line["what"] for line in lines] == ["started", "x", "y", "stopped"]
    assert lines[1] == {"at": "2024-10-04T12:00:00.000+00:00", "what": "x", "a": 1}
    chosen = fleet("export", str(log.folder), "--what", "y", "--since", "2024-10-04")[1]
    assert len(chosen.splitlines()) == 1
    assert fleet("export", str(log.folder), "--until", "2024-10-03")[1] == ""


def test_the_form_of_a_line_stays_as_it_is() -> None:
    entry = audit.AuditEntry(seq=7, at_ms=1_700_000_000_000, what="admin", about={"op": "costs"})
    seal, line = audit.sealed(KEY, audit.GENESIS, entry)
    assert line == seal.encode() + b" " + msgspec.json.encode(entry)
