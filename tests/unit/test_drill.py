"""What a drill counts as a fault, and what its audit holds against a fleet."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from fleet_cli.__main__ import run
from fleet_cli.drill.audit import Loss, audit
from fleet_cli.drill.devices import Errands
from fleet_cli.drill.faults import MEANINGS, Fault, FaultKind, Parts, deal
from fleet_cli.drill.ledger import JobRecord, Ledger
from fleet_cli.drill.shifted_clock import shifted
from fleet_cli.drill.stored import StoredJob, StoreUnreadableError, read_store
from fleet_cli.exits import ExitCode
from fleet_cli.root import root
from fleet_protocol.messages import AckStatus, AnsweredBy, JobAck, JobResult, JobStatus

PARTS = Parts(workers=("w1", "w2"), devices=("d1", "d2"))
ACCEPTED = JobAck(status=AckStatus.ACCEPTED)


def dealt(seed: int, count: int, *kinds: FaultKind) -> list[Fault]:
    rng = random.Random(seed)
    return list(islice(deal(kinds or tuple(FaultKind), PARTS, every_s=4.0, rng=rng), count))


def result(text: str = "hello", **fields: object) -> JobResult:
    about = {"id": "1", "status": JobStatus.OK, "answered_by": AnsweredBy.EDGE, "text": text}
    return msgspec.convert({**about, **fields}, JobResult)


def record(**fields: object) -> JobRecord:
    """Return a job that went well, changed by what is given."""
    about = {
        "device": "d1",
        "id": "1",
        "text": "hello",
        "submitted_at_ms": 1_000.0,
        "accepted_at_ms": 1_010.0,
        "results": [result()],
        "told": 1,
        "result_at_ms": 1_050.0,
    }
    return JobRecord(**{**about, **fields})  # type: ignore[arg-type]


def stored(**fields: object) -> StoredJob:
    about = {
        "device": "d1",
        "id": "1",
        "status": JobStatus.OK,
        "received_at_ms": 1_005,
        "attempt": 1,
        "told": True,
        "result": result(),
    }
    return StoredJob(**{**about, **fields})  # type: ignore[arg-type]


def losses(seen: JobRecord, kept: StoredJob | None) -> list[str]:
    found = audit([seen], {} if kept is None else {("d1", "1"): kept})
    assert found.is_good is not bool(found.lost or found.doubled or found.wrong)
    return [flaw.what for flaw in found.lost]


# -------------------------------------------------------------------- the schedule


def test_a_seed_deals_the_same_faults_again_and_another_seed_other_ones() -> None:
    assert dealt(1, 100) == dealt(1, 100)
    assert dealt(1, 100) != dealt(2, 100)


def test_every_kind_is_dealt_as_often_as_the_others() -> None:
    kinds = (FaultKind.KILL_DISPATCHER, FaultKind.KILL_BROKER, FaultKind.CUT_LINK)
    assert set(Counter(f.kind for f in dealt(1, 30, *kinds)).values()) == {10}


def test_a_fault_strikes_only_what_it_can() -> None:
    for fault in dealt(1, 500):
        assert fault.target in PARTS.of(fault.kind)
        assert (fault.shift_s != 0.0) is (fault.kind is FaultKind.CLOCK_JUMP)
        assert 2.0 <= fault.pause_s <= 6.0


def test_every_fault_says_what_it_does() -> None:
    assert set(MEANINGS) == set(FaultKind)


# -------------------------------------------------------------------- the audit


def test_a_job_with_one_result_that_is_also_the_stored_one_is_as_it_should_be() -> None:
    found = audit([record(told=3)], {("d1", "1"): stored()})
    assert found.is_good
    assert (found.submitted, found.accepted, found.repeated) == (1, 1, 2)
    assert found.statuses == {"ok": 1}
    assert found.wait_ms["max"] == 50.0


def test_an_accepted_job_that_is_not_stored_is_lost() -> None:
    assert losses(record(), None) == [Loss.NOT_STORED]


def test_an_accepted_job_without_a_final_result_is_lost() -> None:
    kept = stored(status=JobStatus.ASSIGNED, result=None)
    assert losses(record(results=[], told=0, result_at_ms=None), kept) == [Loss.UNFINISHED]


def test_a_result_that_its_device_never_heard_is_lost() -> None:
    assert losses(record(results=[], told=0, result_at_ms=None), stored()) == [Loss.UNHEARD]


def test_a_job_that_was_accepted_a_second_time_had_been_lost() -> None:
    assert losses(record(), stored(received_at_ms=9_000)) == [Loss.FORGOTTEN]


def test_a_submission_that_nobody_accepted_is_not_lost() -> None:
    seen = record(accepted_at_ms=None, results=[], told=0, result_at_ms=None)
    assert losses(seen, None) == []
    assert audit([seen], {}).unanswered == 1


def test_two_different_results_of_one_job_are_found() -> None:
    two = [result(), result("goodbye")]
    assert len(audit([record(text=None, results=two)], {("d1", "1"): stored()}).doubled) == 1


def test_a_result_that_is_not_the_stored_one_is_found() -> None:
    kept = stored(result=result("hello", attempts=2))
    assert len(audit([record()], {("d1", "1"): kept}).doubled) == 1


def test_another_jobs_answer_is_found() -> None:
    other = result("something else")
    found = audit([record(results=[other])], {("d1", "1"): stored(result=other)})
    assert (len(found.wrong), found.is_good) == (1, False)


def test_a_refusal_for_good_is_counted_by_its_code_and_is_no_loss() -> None:
    seen = record(accepted_at_ms=None, results=[], told=0, result_at_ms=None, code="unknown_model")
    found = audit([seen], {})
    assert (found.is_good, found.refused, found.unanswered) == (True, {"unknown_model": 1}, 0)


# -------------------------------------------------------------------- the ledger


def test_a_device_that_is_told_to_come_back_later_still_waits() -> None:
    ledger = Ledger()
    ledger.submitted("d1", "1", text=None)
    ledger.acked("d1", "1", JobAck(status=AckStatus.REJECTED, code="busy", retry_after_ms=500))
    assert ledger.open_jobs == 1
    ledger.acked("d1", "1", JobAck(status=AckStatus.REJECTED, code="malformed"))
    assert ledger.open_jobs == 0


def test_the_same_result_again_is_counted_and_not_kept_twice() -> None:
    ledger = Ledger()
    ledger.submitted("d1", "1", text=None)
    for text in ("hello", "hello", "goodbye"):
        ledger.heard("d1", result(text))
    seen = ledger.records()[0]
    assert (seen.told, [r.text for r in seen.results]) == (3, ["hello", "goodbye"])


def test_what_a_moment_meant_is_told_from_the_jobs_around_it() -> None:
    ledger = Ledger()
    ledger.submitted("d1", "before", text=None)
    at_ms = time.time_ns() / 1e6
    assert not ledger.flows_since(at_ms)
    ledger.submitted("d1", "1", text=None)
    ledger.heard("d1", result())
    effect = ledger.effect(at_ms)
    assert ledger.flows_since(at_ms)
    assert (effect.open_jobs, effect.cleared_s) == (1, None)
    assert effect.flowed_s is not None
    ledger.acked("d1", "before", ACCEPTED)
    ledger.heard("d1", result(id="before"))
    cleared_s = ledger.effect(at_ms).cleared_s
    assert cleared_s is not None
    assert cleared_s >= effect.flowed_s


# -------------------------------------------------------------------- its parts


def test_what_devices_ask_hangs_on_the_seed_and_every_job_has_an_id_of_its_own() -> None:
    def asked(seed: int) -> list[object]:
        errands = Errands(random.Random(seed), echoes=True)
        return [errand.options for errand in (errands.next() for _ in range(300))]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)
    errands = Errands(random.Random(1), echoes=True)
    some = [errands.next() for _ in range(300)]
    assert len({errand.id for errand in some}) == 300
    assert any(errand.cancel_after_s is not None for errand in some)
    # What only the cloud may answer is not known beforehand; all else is echoed.
    assert all((e.text is None) is (e.options.get("escalate") == "always") for e in some)


def test_a_program_under_a_shifted_clock_sees_another_time_and_its_own_arguments() -> None:
    words = [*shifted(3_600.0, "timeit"), "-n", "1", "-r", "1", "-s", "import time"]
    code = "print(time.time(), time.time_ns())"
    said = subprocess.run([*words, code], capture_output=True, text=True, check=True, timeout=60)
    now_s, now_ns = said.stdout.splitlines()[0].split()
    for seen_s in (float(now_s), int(now_ns) / 1e9):
        assert abs(seen_s - time.time() - 3_600.0) < 60.0


def test_a_clock_that_is_right_needs_no_launcher() -> None:
    assert shifted(0.0, "edge_worker", "run") == (sys.executable, "-m", "edge_worker", "run")


def test_a_store_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreadableError):
        read_store(tmp_path / "none.db")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as db:
        db.execute("create table things (name text)")
    with pytest.raises(StoreUnreadableError):
        read_store(other)


# -------------------------------------------------------------------- the command


def test_the_list_of_faults_names_each_with_what_it_does() -> None:
    shown = CliRunner().invoke(root, ["drill", "--list"])
    assert shown.exit_code == 0
    assert "kill-dispatcher" in shown.output
    assert "clock-jump" in shown.output


def test_an_unknown_fault_is_named_with_the_way_to_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["drill", "--faults", "kill-dispatcher,earthquake"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "earthquake" in said
    assert "--list" in said


def test_a_drill_wants_a_folder_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dispatcher.db").touch()
    assert run(["drill", "--data", str(tmp_path)]) == ExitCode.USAGE
    assert "not empty" in capsys.readouterr().err
