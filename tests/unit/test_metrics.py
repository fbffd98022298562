"""What is counted of (event, commands), and how Prometheus reads it."""

from __future__ import annotations

import asyncio
import gzip
import re
import urllib.request
from itertools import groupby

import pytest
from msgspec.structs import replace

from cloud_dispatcher import gauges
from cloud_dispatcher.adapters.http.exposition import render, render_workers
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.commands import SaveJob, Send
from cloud_dispatcher.core.engine import EngineSummary
from cloud_dispatcher.core.job import Job, PartOf
from cloud_dispatcher.metrics import BUCKETS_S, Family, FleetCounts
from docs.metrics_page import at_rest
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.gateway_house import gateway
from tests.unit.service_house import PATIENCE_S, QUESTION, House, Peer, Worker

NOW_MS = 1_000_000
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def parse(text: str) -> dict[tuple[str, str], float]:
    """Read the text format, strictly; the last line must end."""
    assert text.endswith("\n")
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ (counter|gauge|histogram))", line), line
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert (sample[1], sample[2] or "") not in found
            found[sample[1], sample[2] or ""] = float(sample[3])
    return found


def job(result: m.JobResult | None = None, **fields: object) -> Job:
    made = Job(
        key=m.JobKey("k1"),
        device=m.DeviceId("d1"),
        id=m.JobId("j1"),
        submit=QUESTION,
        received_at_ms=NOW_MS - 700,
        finished_at_ms=None if result is None else NOW_MS,
        result=result,
        status=m.JobStatus.QUEUED if result is None else result.status,
    )
    return Job(**{name: getattr(made, name) for name in made.__struct_fields__} | fields)


def answered(by: m.AnsweredBy, *, total_ms: int = 700, cost_usd: float = 0.0) -> m.JobResult:
    return m.JobResult(
        id="j1",
        status=m.JobStatus.OK,
        text="It is.",
        answered_by=by,
        cost_usd=cost_usd,
        usage=m.Usage(prompt_tokens=9, completion_tokens=4),
        timing_ms=m.TimingMs(queued=5, first_token=100, total=total_ms),
    )


def counted(*decisions: tuple[e.AnyEvent, list[SaveJob | Send]]) -> dict[tuple[str, str], float]:
    counts = FleetCounts()
    for event, commands in decisions:
        counts.observe(event, commands, NOW_MS)
    return parse(render(counts.families()))


def test_a_result_is_counted_once_with_its_span_tokens_and_cost() -> None:
    saved = [SaveJob(job=job(answered(m.AnsweredBy.CLOUD, cost_usd=0.25)))]
    found = counted((e.TimePassed(), saved), (e.ResultConfirmed(job=m.JobKey("k1")), saved))
    assert found["edgefleet_jobs_finished_total", 'status="ok",answered_by="cloud"'] == 1
    assert found["edgefleet_tokens_total", 'answered_by="cloud"'] == 4
    assert found["edgefleet_cost_usd_total", ""] == 0.25
    assert found["edgefleet_job_latency_seconds_sum", 'answered_by="cloud"'] == 0.7
    assert found["edgefleet_first_token_seconds_count", 'answered_by="cloud"'] == 1


@pytest.mark.parametrize("span_ms", [0, 10, 11, 1_000, 1_001, 299_999, 999_999])
def test_a_span_is_in_its_bucket_and_in_all_above(span_ms: int) -> None:
    result = answered(m.AnsweredBy.EDGE, total_ms=span_ms)
    found = counted((e.TimePassed(), [SaveJob(job=job(result))]))
    for bound in (*BUCKETS_S, float("inf")):
        label = f'answered_by="edge",le="{"+Inf" if bound == float("inf") else bound}"'
        inside = found["edgefleet_job_latency_seconds_bucket", label]
        assert inside == (span_ms / 1_000 <= bound), label


def test_a_part_is_no_job_of_its_own_and_its_tokens_count_once() -> None:
    part = PartOf(job=m.JobKey("k0"), round=0, start=0, end=9)
    of_part = SaveJob(job=job(answered(m.AnsweredBy.EDGE), part=part))
    of_whole = SaveJob(job=job(answered(m.AnsweredBy.EDGE), parts=1))
    found = counted((e.TimePassed(), [of_part]), (e.TimePassed(), [of_whole]))
    assert found["edgefleet_jobs_finished_total", 'status="ok",answered_by="edge"'] == 1
    assert found["edgefleet_tokens_total", 'answered_by="edge"'] == 4


def test_refusals_and_board_failures_are_counted_by_code() -> None:
    refusal = m.JobAck(status=m.AckStatus.REJECTED, code="busy")
    told = Send(channel=t.ACK, ids=("d1", "j1"), message=refusal)
    failure = m.JobFailed(attempt=1, code="bad_output_format")
    failed = e.FailureReceived(worker=m.WorkerId("w1"), job=m.JobKey("k1"), failure=failure)
    found = counted((e.TimePassed(), [told]), (failed, []))
    assert found["edgefleet_submissions_rejected_total", 'code="busy"'] == 1
    assert found["edgefleet_board_failures_total", 'code="bad_output_format"'] == 1


def test_codes_that_boards_make_up_are_one_series_at_last() -> None:
    counts = FleetCounts()
    for number in [*range(300), 7]:
        failure = m.JobFailed(attempt=1, code=f"e{number}")
        event = e.FailureReceived(worker=m.WorkerId("w1"), job=m.JobKey("k1"), failure=failure)
        counts.observe(event, [], NOW_MS)
    name = "edgefleet_board_failures_total"
    found = {
        labels: n for (of, labels), n in parse(render(counts.families())).items() if of == name
    }
    assert (len(found), found['code="other"'], found['code="e7"']) == (101, 200, 2)


def test_strange_words_stay_within_their_label() -> None:
    strange = Family(
        name="x", kind="gauge", help="a\nb", samples=(("", (("code", 'a"b\\c\nd'),), 1.5),)
    )
    assert parse(render([strange])) == {("x", r'code="a\"b\\c\nd"'): 1.5}


def test_what_objectives_hang_on_is_there_before_the_first_job() -> None:
    found = counted()
    for status, by in (
        ("ok", "edge"),
        ("ok", "cloud"),
        ("failed", "nobody"),
        ("expired", "nobody"),
    ):
        assert found["edgefleet_jobs_finished_total", f'status="{status}",answered_by="{by}"'] == 0
    assert found["edgefleet_job_latency_seconds_count", 'answered_by="edge"'] == 0
    assert found["edgefleet_queue_seconds_count", ""] == 0


def shown(**changes: object) -> dict[tuple[str, str], float]:
    """Return the gauges of a dispatcher at rest, but for some."""
    return parse(render(gauges.families(at_rest(**changes))))


def test_a_dispatcher_at_rest_shows_noughts_not_gaps() -> None:
    found = shown()
    assert found["edgefleet_workers", 'status="online"'] == 0
    assert found["edgefleet_cloud_endpoints", 'state="closed"'] == 0
    assert found["edgefleet_alerts_firing", 'severity="critical"'] == 0
    assert found["edgefleet_overload_signal", 'signal="memory"'] == 0
    assert found["edgefleet_build_info", 'version="9.0.0"'] == 1
    assert found["edgefleet_start_time_seconds", ""] == 1_700_000_000.5


def test_what_nobody_can_tell_has_no_sample() -> None:
    found = {name for name, _ in shown()}
    assert not found & {
        "edgefleet_memory_used_ratio",
        "edgefleet_budget_spent_usd",
        "edgefleet_budget_limit_usd",
    }
    spent = m.BudgetView(tenant="", spent_usd=1.5)
    found = {name for name, _ in shown(budget=spent)}
    assert "edgefleet_budget_spent_usd" in found
    assert "edgefleet_budget_limit_usd" not in found


def test_gauges_show_load_cloud_and_budget() -> None:
    load = m.LoadView(step=1, causes=("memory",), memory_pct=91.0)
    engine = EngineSummary(
        queued=3, inflight=0, escalated=0, untold=0, workers={"online": 2}, load=load
    )
    endpoints = [m.EndpointView(name=n, model="m", state=n) for n in ("open", "closed", "closed")]
    budget = m.BudgetView(tenant="", spent_usd=8.0, daily_usd=10.0)
    dropped = {"too_large": 4}
    firing = {m.Severity.CRITICAL: 1}
    found = shown(engine=engine, endpoints=endpoints, budget=budget, dropped=dropped, firing=firing)
    assert found["edgefleet_memory_used_ratio", ""] == 0.91
    assert found["edgefleet_overload_signal", 'signal="memory"'] == 1
    assert found["edgefleet_cloud_endpoints", 'state="closed"'] == 2
    assert found["edgefleet_budget_limit_usd", ""] == 10
    assert found["edgefleet_messages_dropped_total", 'code="too_large"'] == 4
    assert found["edgefleet_alerts_firing", 'severity="critical"'] == 1


def board(name: str, state: m.WorkerState | None = None) -> m.WorkerView:
    return m.WorkerView(
        worker=m.WorkerId(name),
        status=m.PresenceStatus.ONLINE,
        weight=0.5,
        compute=0.5,
        bandwidth=0.5,
        inflight=2,
        slots=2,
        state=state,
    )


STATE = m.WorkerState(
    ts=1, seq=1, status=m.Activity.BUSY, cpu_pct=50, mem_pct=25, inflight=2, temp_c=71.5
)


async def test_a_worker_has_series_of_its_own() -> None:
    found = parse(await render_workers([board("pi-1", STATE)]))
    of_pi = 'worker="pi-1"'
    assert found["edgefleet_worker_temperature_celsius", of_pi] == 71.5
    assert found["edgefleet_worker_cpu_used_ratio", of_pi] == 0.5
    assert found["edgefleet_worker_online", of_pi] == 1
    # It cannot say whether it is throttled.
    assert ("edgefleet_worker_throttled", of_pi) not in found


async def test_a_metric_of_many_workers_is_in_one_piece_and_leaves_out_what_nobody_said() -> None:
    readings = [None, STATE, replace(STATE, temp_c=None), replace(STATE, throttled=True)]
    boards = [board(f"pi-{number}", readings[number % 4]) for number in range(1_001)]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    having_turns = asyncio.create_task(others())
    text = await render_workers(boards)
    having_turns.cancel()
    assert turns >= 5
    found = parse(text)
    for number, each in enumerate(boards):
        label, state = f'worker="{each.worker}"', readings[number % 4]
        assert found["edgefleet_worker_inflight", label] == 2
        told = {name for name, whose in found if whose == label}
        assert ("edgefleet_worker_memory_used_ratio" in told) == (state is not None)
        assert found.get(("edgefleet_worker_throttled", label)) == (1 if number % 4 == 3 else None)
        has_heat = state is not None and state.temp_c is not None
        assert ("edgefleet_worker_temperature_celsius" in told) == has_heat
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    told_names = [line.partition("{")[0] for line in text.splitlines() if line[0] != "#"]
    assert [name for name, _ in groupby(told_names)] == names


async def test_workers_have_series_of_their_own_only_where_that_is_wanted_packed_or_not(
    house: House, worker: Worker
) -> None:
    names = [f"pi-{number}" for number in range(300)]
    for name in names:
        worker.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b1"), name)
    for is_wanted in (False, True):
        async with gateway(house, worker_metrics=is_wanted) as url:
            found = dict[tuple[str, str], float]()
            while found.get(("edgefleet_workers", 'status="online"')) != 1 + len(names):
                found = await asyncio.to_thread(scrape, url)
            packed = await asyncio.to_thread(scrape, url, packed=is_wanted)
        assert packed == found
        told = {label for name, label in found if name == "edgefleet_worker_online"}
        wanted = {f'worker="{name}"' for name in ("w1", *names)}
        assert told == (wanted if is_wanted else set())


def scrape(url: str, *, packed: bool = False) -> dict[tuple[str, str], float]:
    """Look as Prometheus does."""
    headers = {"Accept-Encoding": "gzip"} if packed else {}
    request = urllib.request.Request(f"{url}/metrics", headers=headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - loopback
        assert reply.headers.get_content_type() == "text/plain"
        assert (reply.headers["content-encoding"] == "gzip") == packed
        body = reply.read()
    return parse((gzip.decompress(body) if packed else body).decode())


async def test_a_scrape_shows_what_the_fleet_did(
    house: House, device: Peer, worker: Worker
) -> None:
    async with gateway(house) as url:
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")

        found = await asyncio.to_thread(scrape, url)
    assert found["edgefleet_jobs_submitted_total", ""] == 1
    assert found["edgefleet_assignments_total", ""] == 1
    assert found["edgefleet_jobs_finished_total", 'status="ok",answered_by="edge"'] == 1
    assert found["edgefleet_workers", 'status="online"'] == 1
    assert found["edgefleet_jobs_open", 'state="queued"'] == 0
