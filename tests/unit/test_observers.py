"""The canonical line and the figures, fed with decisions by hand."""

from __future__ import annotations

from msgspec.structs import replace
from structlog.testing import capture_logs

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.commands import SaveJob
from cloud_dispatcher.core.engine import EngineSummary
from cloud_dispatcher.core.job import Job, PartOf
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.observers import FleetFigures, JobLog
from fleet_protocol import messages as m

NOTHING = EngineSummary(queued=0, inflight=0, escalated=0, untold=0, workers={})
TICK = e.TimePassed()


def job(number: int, *, received_at_ms: int = 0) -> Job:
    return Job(
        key=m.JobKey(f"k{number}"),
        device=m.DeviceId("d1"),
        id=m.JobId(f"j{number}"),
        submit=m.JobSubmit(prompt="Is the hall warm?"),
        received_at_ms=received_at_ms,
    )


def end(open_job: Job, at_ms: int, *, told: bool = False, **fields: object) -> SaveJob:
    known: dict[str, object] = {"status": m.JobStatus.OK, "answered_by": m.AnsweredBy.EDGE}
    result = m.JobResult(id=open_job.id, text="It is so.", **(known | fields))  # type: ignore[arg-type]  # by hand
    return SaveJob(
        job=Job(
            key=open_job.key,
            device=open_job.device,
            id=open_job.id,
            submit=open_job.submit,
            received_at_ms=open_job.received_at_ms,
            status=result.status,
            result=result,
            finished_at_ms=at_ms,
            told=told,
        )
    )


def test_a_job_is_logged_and_counted_once_however_often_its_end_is_saved() -> None:
    figures, log = FleetFigures(), JobLog()
    done = end(job(1), 500)
    with capture_logs() as lines:
        for observer in (figures, log):
            observer.observe(TICK, [SaveJob(job=job(1))], 100)
            observer.observe(TICK, [done], 500)
            observer.observe(e.ResultRefused(job=job(1).key, code="x"), [done], 500)
            observer.observe(e.ResultConfirmed(job=job(1).key), [end(job(1), 500, told=True)], 900)
            observer.observe(TICK, [done], 700)
    assert [line["event"] for line in lines] == ["job.finished"]
    assert figures.summary(1_000, NOTHING).finished == {"ok": 1}


def test_the_line_says_everything_but_the_texts() -> None:
    with capture_logs() as lines:
        JobLog().observe(TICK, [end(job(1), 500, degraded=True, reason=m.Reason.COMPLEX)], 500)
    (line,) = lines
    expected = {"job": "k1", "device": "d1", "status": "ok", "reason": "complex", "degraded": True}
    assert expected.items() <= line.items()
    assert (line["prompt_chars"], line["answer_chars"]) == (17, 9)
    assert "hall" not in str(line)
    assert "It is so" not in str(line)


def test_the_rate_is_of_the_last_ten_whole_seconds() -> None:
    figures = FleetFigures()
    for number in range(50):
        at_ms = 100_000 + 100 * number
        figures.observe(TICK, [end(job(number), at_ms)], at_ms)
    assert figures.summary(105_000, NOTHING).jobs_per_s == 5.0
    assert figures.summary(112_000, NOTHING).jobs_per_s == 3.0
    assert figures.summary(120_000, NOTHING).jobs_per_s == 0.0


def test_quantiles_are_of_the_last_minute() -> None:
    figures = FleetFigures()
    for span_ms in range(1, 102):
        at_ms = 100_000
        figures.observe(TICK, [end(job(span_ms, received_at_ms=at_ms - span_ms), at_ms)], at_ms)
    latency = figures.summary(100_000, NOTHING).latency_ms
    assert (latency.p50, latency.p95, latency.p99) == (51, 96, 100)
    assert figures.summary(160_001, NOTHING).latency_ms == m.Quantiles()


def test_figures_are_bounded_however_many_jobs_pass() -> None:
    figures = FleetFigures()
    for number in range(10_000):
        figures.observe(TICK, [end(job(number), number * 10)], number * 10)
    assert len(figures._latencies) <= 4_096
    assert len(figures._per_s) <= 11


def test_who_answered_what_it_cost_and_why_it_was_escalated_add_up() -> None:
    figures = FleetFigures()
    up = Job(
        key=m.JobKey("k9"),
        device=m.DeviceId("d1"),
        id=m.JobId("j9"),
        submit=m.JobSubmit(prompt="?"),
        received_at_ms=0,
        status=m.JobStatus.ESCALATED,
        reason=m.Reason.TOO_LONG,
    )
    escalation = m.Escalation(attempt=1, reason=m.Reason.TOO_LONG)
    event = e.EscalationReceived(worker=m.WorkerId("w"), job=up.key, escalation=escalation)
    figures.observe(event, [SaveJob(job=up)], 1)
    figures.observe(TICK, [SaveJob(job=up)], 2)
    figures.observe(TICK, [end(up, 3, answered_by=m.AnsweredBy.CLOUD, cost_usd=0.25)], 3)
    figures.observe(TICK, [end(job(1), 4, status=m.JobStatus.FAILED, answered_by=None)], 4)
    summary = figures.summary(5, NOTHING)
    assert summary.reasons == {"too_long": 1}
    assert summary.answered_by == {"cloud": 1}
    assert summary.finished == {"ok": 1, "failed": 1}
    assert summary.cost_usd == 0.25


def test_keys_only_grow_even_when_the_clock_steps_back() -> None:
    mint = KeyMint(lambda bits: (1 << bits) - 1)
    keys = [mint.mint(at_ms) for at_ms in (5, 5, 3, 6, 6, 1_800_000_000_000)]
    assert keys == sorted(set(keys))
    assert {len(key) for key in keys} == {26}
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    at_ms = sum(digits.index(c) << 5 * (9 - i) for i, c in enumerate(keys[-1][:10]))
    assert at_ms == 1_800_000_000_000, "the time comes first, as in any ULID"


def test_a_job_in_parts_is_one_job_and_its_cost_is_counted_once() -> None:
    figures, whole = FleetFigures(), end(job(1), 500, cost_usd=0.5)
    part = end(job(2), 400, cost_usd=0.5)
    of = PartOf(job=job(1).key, round=0, start=0, end=9)
    figures.observe(TICK, [SaveJob(job=replace(part.job, part=of))], 400)
    figures.observe(TICK, [SaveJob(job=replace(whole.job, parts=1))], 500)
    summary = figures.summary(1_000, NOTHING)
    assert summary.finished == {"ok": 1}
    assert summary.cost_usd == 0.5


def test_codes_that_boards_make_up_are_counted_together_at_last() -> None:
    figures = FleetFigures()
    for number in range(300):
        figures.observe(TICK, [end(job(number), 500, degraded=True, code=f"e{number}")], 500)
    figures.observe(TICK, [end(job(301), 500, degraded=True, code="e7")], 500)
    degraded = figures.summary(1_000, NOTHING).degraded
    assert (len(degraded), degraded["other"], degraded["e7"]) == (101, 200, 2)
