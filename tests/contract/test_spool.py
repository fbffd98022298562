"""What every spool keeps, the shipped fake as well as the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlite_utils import Database

from edge_worker.adapters.spool_memory import MemorySpool
from edge_worker.adapters.spool_sqlite import SqliteSpool, open_sealer
from edge_worker.ports import Outcome, Spool, SpooledJob, SpoolUnavailableError
from fleet_pki.sealing import KeyRing, RecordSealer
from fleet_protocol import messages as m
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.errors import ConfigError

FILE_MB = 1
RING = KeyRing([bytes(range(32))])
OUTCOMES: list[Outcome] = [
    m.JobDone(attempt=1, answer=m.LocalAnswer(text="21 °C", model="tiny", confidence=0.9)),
    m.JobFailed(attempt=1, code="deadline", retryable=False),
    m.Escalation(
        attempt=1, reason=m.Reason.COMPLEX, answer=m.LocalAnswer(text="half", model="tiny")
    ),
]


def spooled(job: str = "J1", attempt: int = 1, *, at_ms: int = 5, chars: int = 9) -> SpooledJob:
    return SpooledJob(
        assignment=m.Assignment(
            job=job,
            attempt=attempt,
            lease_ms=1_000,
            messages=(m.ChatMessage(role=m.ChatRole.USER, content="x" * chars),),
        ),
        received_at_ms=at_ms,
    )


def with_outcome(job: SpooledJob, outcome: Outcome) -> SpooledJob:
    return msgspec.structs.replace(job, outcome=outcome)


@pytest.fixture(params=["memory", "sqlite", "sqlite sealed"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spool]:
    spool: Spool
    if request.param == "memory":
        spool = MemorySpool()
    else:
        sealer = RecordSealer(RING) if "sealed" in request.param else None
        path = tmp_path / "worker" / "spool.sqlite"
        spool = SqliteSpool(path, max_mb=FILE_MB, sealer=sealer)
    spool.open()
    yield spool
    spool.close()


def fill(spool: Spool) -> None:
    """Make the disk full: nothing of a usual size fits any more."""
    if isinstance(spool, MemorySpool):
        spool.fails = True
        return
    for chars in (200_000, 20_000, 2_000, 200):
        for number in range(100):
            try:
                spool.commit(keep=[spooled(f"F{chars}-{number}", chars=chars)], forget=[])
            except SpoolUnavailableError:
                break


def empty(spool: Spool) -> None:
    """Free the disk again."""
    if isinstance(spool, MemorySpool):
        spool.fails = False
        return
    held = [(m.JobKey(job.assignment.job), job.assignment.attempt) for job in spool.load()]
    spool.commit(keep=[], forget=[ref for ref in held if ref[0].startswith("F")])


def reopened(spool: Spool) -> list[SpooledJob]:
    spool.close()
    spool.open()
    return spool.load()


def cached(name: str, *, chars: int = 9, at_ms: int = 5) -> CachedAnswer:
    return CachedAnswer(
        key=name.encode(),
        text="x" * chars,
        model="tiny",
        made_at_ms=at_ms,
        until_at_ms=100,
        build="tiny 1",
        confidence=0.5,
        usage=m.Usage(prompt_tokens=4),
    )


def test_earlier_answers_are_there_after_reopening_oldest_first(spool: Spool) -> None:
    late, early, newer = cached("a", at_ms=9), cached("b", at_ms=3), cached("a", at_ms=10)
    spool.commit(keep=[spooled()], forget=[], answers=[late, early])
    spool.commit(keep=[], forget=[], answers=[newer])
    assert reopened(spool) == [spooled()]
    assert spool.load_answers() == [early, newer]


def test_earlier_answers_are_forgotten_before_new_ones_are_kept(spool: Spool) -> None:
    spool.commit(keep=[spooled()], forget=[], answers=[cached("a")])
    spool.commit(keep=[], forget=[], answers=[cached("b")], clear=True)
    assert spool.load_answers() == [cached("b")]
    assert spool.load() == [spooled()]


def test_a_new_spool_is_empty(spool: Spool) -> None:
    assert spool.load() == []


def test_what_was_kept_is_there_after_reopening_oldest_first(spool: Spool) -> None:
    late, early = spooled("J1", at_ms=9), spooled("J2", at_ms=3)
    spool.commit(keep=[late, early], forget=[])
    assert reopened(spool) == [early, late]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=["done", "failed", "escalation"])
def test_an_outcome_is_kept_beside_its_assignment(spool: Spool, outcome: Outcome) -> None:
    spool.commit(keep=[spooled()], forget=[])
    ended = with_outcome(spooled(), outcome)
    spool.commit(keep=[ended], forget=[])
    assert reopened(spool) == [ended]


def test_the_form_of_an_answer_is_kept(spool: Spool) -> None:
    job = spooled()
    output = m.OutputFormat(json_schema={"properties": {"b": {}, "a": {}}})
    generation = m.Generation(output=output)
    job = msgspec.structs.replace(
        job, assignment=msgspec.structs.replace(job.assignment, generation=generation)
    )
    spool.commit(keep=[job], forget=[])
    (again,) = spool.load()
    assert again == job
    assert msgspec.json.encode(again.assignment) == msgspec.json.encode(job.assignment)


def test_an_outcome_that_comes_with_its_assignment_is_kept_whole(spool: Spool) -> None:
    known, fresh = spooled("J1"), spooled("J2")
    spool.commit(keep=[known], forget=[])
    ended = [with_outcome(job, OUTCOMES[0]) for job in (known, fresh)]
    spool.commit(keep=[*ended, spooled("J3")], forget=[])
    assert reopened(spool) == [*ended, spooled("J3")]


def test_attempts_of_one_job_are_kept_apart(spool: Spool) -> None:
    spool.commit(keep=[spooled(attempt=1), spooled(attempt=2)], forget=[])
    spool.commit(keep=[], forget=[(m.JobKey("J1"), 1)])
    assert reopened(spool) == [spooled(attempt=2)]


def test_forgetting_what_is_not_there_is_no_error(spool: Spool) -> None:
    spool.commit(keep=[], forget=[(m.JobKey("J9"), 1)])
    assert spool.load() == []


def test_an_attempt_kept_and_forgotten_at_once_is_gone(spool: Spool) -> None:
    spool.commit(keep=[spooled()], forget=[(m.JobKey("J1"), 1)])
    assert reopened(spool) == []


def test_a_full_disk_is_an_error_that_changes_nothing_and_passes(spool: Spool) -> None:
    spool.commit(keep=[spooled("J1")], forget=[])
    fill(spool)
    with pytest.raises(SpoolUnavailableError) as caught:
        spool.commit(
            keep=[spooled("J2"), spooled("J3", chars=200_000)], forget=[(m.JobKey("J1"), 1)]
        )
    assert caught.value.code == "spool_unavailable"
    empty(spool)
    assert reopened(spool) == [spooled("J1")]
    spool.commit(keep=[spooled("J2")], forget=[])
    assert len(spool.load()) == 2


def test_a_closed_spool_is_an_error(spool: Spool) -> None:
    spool.close()
    with pytest.raises(SpoolUnavailableError):
        spool.commit(keep=[spooled()], forget=[])
    with pytest.raises(SpoolUnavailableError):
        spool.load()


# ---------------------------------------------------------------- the file alone

WRITER = """
import sys
from pathlib import Path
from edge_worker.adapters.spool_sqlite import SqliteSpool, open_sealer
from edge_worker.ports import SpooledJob
from fleet_protocol.messages import Assignment

spool = SqliteSpool(Path(sys.argv[1]))
spool.open()
for number in range(1_000_000):
    job = Assignment(job=f"J{number}", attempt=1, lease_ms=1, messages=())
    spool.commit(keep=[SpooledJob(assignment=job, received_at_ms=number)], forget=[])
    print(number, flush=True)
"""


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    last = -1
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout is not None
            while last < 50:
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in writer.stdout.read().split())])
        finally:
            writer.kill()
    spool = SqliteSpool(path)
    spool.open()
    names = [job.assignment.job for job in spool.load()]
    spool.close()
    assert names[: last + 1] == [f"J{number}" for number in range(last + 1)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_a_spool_that_root_makes_is_its_folders_owners(tmp_path: Path) -> None:
    os.chown(tmp_path, 12_345, 23_456)
    spool = SqliteSpool(tmp_path / "spool.sqlite")
    spool.open()
    spool.commit(keep=[spooled()], forget=[])
    made = {path.name: path.stat() for path in tmp_path.iterdir()}
    spool.close()
    assert {"spool.sqlite", "spool.sqlite-wal"} <= made.keys()
    assert {(one.st_uid, one.st_gid) for one in made.values()} == {(12_345, 23_456)}


def test_two_workers_never_share_a_file(tmp_path: Path) -> None:
    first, second = (SqliteSpool(tmp_path / "spool.sqlite") for _ in range(2))
    first.open()
    try:
        with pytest.raises(SpoolUnavailableError) as caught:
            second.open()
    finally:
        first.close()
    assert caught.value.code == "spool_locked"
    assert "--data" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpoolUnavailableError, match=r"spool\.sqlite"):
        SqliteSpool(tmp_path / "file" / "spool.sqlite").open()


def test_a_damaged_file_is_put_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"this is no database" * 500)
    spool = SqliteSpool(path)
    spool.open()
    spool.commit(keep=[spooled()], forget=[])
    assert reopened(spool) == [spooled()]
    spool.close()
    assert path.with_name("spool.sqlite.damaged").read_bytes().startswith(b"this is no")


def damaged_inside(path: Path) -> bytes:
    """Damage all pages but the first of a spool that holds something, as a worn card does."""
    pages = bytearray(path.read_bytes())
    for start in range(4_096, len(pages), 4_096):
        pages[start : start + 64] = b"\xff" * 64
    path.write_bytes(pages)
    return bytes(pages)


def test_a_file_that_is_damaged_inside_is_put_aside_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    spool = SqliteSpool(path)
    spool.open()
    spool.commit(keep=[spooled(f"J{number}", chars=2_000) for number in range(9)], forget=[])
    spool.close()
    was = damaged_inside(path)
    assert reopened(spool) == []
    spool.commit(keep=[spooled("K")], forget=[])
    assert reopened(spool) == [spooled("K")]
    spool.close()
    assert path.with_name("spool.sqlite.damaged").read_bytes() == was


def test_a_file_that_turns_out_damaged_is_put_aside_and_takes_what_is_promised(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.sqlite"
    spool = SqliteSpool(path)
    spool.open()
    # More than SQLite remembers of it.
    jobs = [spooled(f"J{number:02}", chars=100_000) for number in range(40)]
    spool.commit(keep=jobs, forget=[])
    assert reopened(spool) == jobs
    damaged_inside(path)
    ended = [with_outcome(job, OUTCOMES[0]) for job in jobs]
    spool.commit(keep=ended, forget=[])
    assert reopened(spool) == ended
    spool.close()
    assert path.with_name("spool.sqlite.damaged").exists()


@pytest.mark.parametrize("left", [b"{", b'{"job":"\xff\xfe"}', b'{"a":' * 3_000])
def test_a_row_that_cannot_be_read_costs_that_row_only(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "spool.sqlite"
    spool = SqliteSpool(path)
    spool.open()
    spool.commit(keep=[spooled("J1"), spooled("J2")], forget=[])
    spool.close()
    database = Database(path)
    database.execute("UPDATE attempts SET assignment = ? WHERE job = 'J1'", [left])
    database.conn.commit()
    database.close()
    assert [job.assignment.job for job in reopened(spool)] == ["J2"]
    spool.close()


def test_a_file_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    database = Database(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SpoolUnavailableError, match="newer release"):
        SqliteSpool(path).open()
    assert path.exists()


def test_the_oldest_answers_make_room_for_newer_ones(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.sqlite", cache_mb=1)
    spool.open()
    for at_ms in range(30):
        spool.commit(keep=[], forget=[], answers=[cached(str(at_ms), chars=80_000, at_ms=at_ms)])
    kept = [answer.made_at_ms for answer in spool.load_answers()]
    spool.close()
    assert kept == list(range(30 - len(kept), 30))
    assert 8 <= len(kept) <= 12


def test_a_worker_without_a_cache_keeps_no_answers(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.sqlite", cache_mb=0)
    spool.open()
    spool.commit(keep=[], forget=[], answers=[cached("a")])
    assert spool.load_answers() == []
    spool.close()


def test_what_was_promised_pushes_earlier_answers_out_of_a_full_file(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.sqlite", max_mb=1)
    spool.open()
    for number in range(9):
        spool.commit(keep=[], forget=[], answers=[cached(str(number), chars=80_000)])
    jobs = [spooled(f"J{number}", chars=80_000) for number in range(9)]
    for job in jobs:
        spool.commit(keep=[job], forget=[], answers=[cached("late", chars=80_000)])
    assert reopened(spool) == jobs
    with pytest.raises(SpoolUnavailableError):
        spool.commit(keep=[spooled("K", chars=900_000)], forget=[])
    spool.close()


def test_a_spool_of_the_release_before_gets_its_table_of_answers(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.sqlite")
    spool.open()
    spool.commit(keep=[spooled()], forget=[])
    spool.close()
    database = Database(tmp_path / "spool.sqlite")
    database.execute("DROP TABLE cached_answers")
    database.execute("PRAGMA user_version = 1")
    database.close()
    spool.open()
    assert spool.load() == [spooled()]
    spool.commit(keep=[], forget=[], answers=[cached("a")])
    assert spool.load_answers() == [cached("a")]
    spool.close()


def test_neither_prompt_nor_answer_is_in_a_sealed_file(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    said = with_outcome(spooled("J1", chars=50), OUTCOMES[0])
    spool = SqliteSpool(path, sealer=RecordSealer(RING))
    spool.open()
    spool.commit(keep=[spooled("J2", chars=50)], forget=[], answers=[cached("a", chars=50)])
    spool.commit(keep=[said], forget=[])
    found = b"".join(file.read_bytes() for file in tmp_path.glob("spool.sqlite*"))
    assert b"x" * 20 not in found
    assert "21 °C".encode() not in found
    assert {job.assignment.job for job in reopened(spool)} == {"J1", "J2"}
    spool.close()


def test_what_another_key_sealed_is_left_and_the_worker_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    for ring, job in ((RING, "J1"), (KeyRing([bytes(32)]), "J2"), (None, "J3")):
        spool = SqliteSpool(path, sealer=None if ring is None else RecordSealer(ring))
        spool.open()
        spool.commit(keep=[spooled(job)], forget=[], answers=[cached(job)])
        spool.close()
    spool = SqliteSpool(path, sealer=RecordSealer(RING))
    spool.open()
    assert [job.assignment.job for job in spool.load()] == ["J1", "J3"]
    assert len(spool.load_answers()) == 2
    spool.close()
    plain = SqliteSpool(path)
    plain.open()
    assert [job.assignment.job for job in plain.load()] == ["J3"]
    plain.close()


def test_the_settings_name_the_key_file(tmp_path: Path) -> None:
    assert open_sealer(None) is None
    (tmp_path / "key").write_text(bytes(32).hex())
    (tmp_path / "key").chmod(0o600)
    assert open_sealer(str(tmp_path / "key")) is not None
    with pytest.raises(ConfigError):
        open_sealer(str(tmp_path / "none"))


def test_prompts_in_the_spool_are_its_owners_to_read(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.sqlite")
    spool.open()
    spool.commit(keep=[spooled()], forget=())
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    spool.close()
    assert set(modes.values()) == {0o600}, modes
