"""Jobs and answers to put into stores."""

from __future__ import annotations

import itertools

import msgspec
from msgspec.structs import replace

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core.job import Job, PartOf, ReplyTo
from cloud_dispatcher.core.spending import Payer
from cloud_dispatcher.ports import JobQuery, JobStore
from fleet_protocol import messages as m
from fleet_protocol.answer_cache import CachedAnswer

_numbers = itertools.count(1)


def make_job(**fields: object) -> Job:
    number = next(_numbers)
    known: dict[str, object] = {
        "key": m.JobKey(f"01J{number:023}"),
        "device": m.DeviceId("d1"),
        "id": m.JobId(f"job-{number}"),
        "submit": m.JobSubmit(prompt="What is it?"),
        "received_at_ms": 1_000 + number,
    }
    return msgspec.convert(msgspec.to_builtins(known | fields, builtin_types=(bytes,)), Job)


def finished(job: Job, *, at_ms: int = 5_000, told: bool = True, **fields: object) -> Job:
    status = fields.pop("status", m.JobStatus.OK)
    text = str(fields.pop("text", "It is so."))
    result = m.JobResult(id=job.id, status=m.JobStatus(str(status)), text=text)
    return replace(job, status=status, result=result, finished_at_ms=at_ms, told=told, **fields)


FULL = make_job(
    submit=m.JobSubmit(
        messages=(m.ChatMessage(role=m.ChatRole.SYSTEM, content="Überlege: 图 \0"),),
        max_tokens=9,
        temperature=0.5,
        seed=7,
        stop=("\n",),
        stream=True,
        privacy=m.Privacy.SITE,
        priority=9,
        compact=True,
    ),
    deadline_at_ms=99_000,
    start_by_at_ms=98_000,
    reply=ReplyTo(plain=True, topic="fleet/v1/dev/d1/mine", correlation_data=b"\x00\xff"),
    status=m.JobStatus.FAILED,
    attempt=4,
    edge_tries=3,
    cloud_tries=1,
    worker=m.WorkerId("w1"),
    last_worker=m.WorkerId("w2"),
    lapsed=True,
    assigned_at_ms=2_000,
    lease_until_ms=3_000,
    not_before_ms=2_500,
    first_token_at_ms=2_100,
    reason=m.Reason.TOO_LONG,
    detail="9000 tokens",
    cloud_code="no_provider",
    cloud_message="no key",
    parts=3,
    part=PartOf(job=m.JobKey("whole"), round=1, start=2, end=4),
    payer=Payer(key="kitchen", daily_usd=0.5),
    past=(m.PastAttempt(attempt=1, ended_at_ms=9, code="worker_lost", worker=m.WorkerId("w1")),),
    kept=m.LocalAnswer(text="half", model="m", confidence=0.25),
    result=m.JobResult(
        id="full",
        status=m.JobStatus.FAILED,
        timing_ms=m.TimingMs(queued=3, total=9),
        usage=m.Usage(prompt_tokens=3),
    ),
    finished_at_ms=4_000,
    dead=True,
    told=True,
    answer_key=b"\x00\xff" * 16,
)


def cached(name: str, *, chars: int = 9, at_ms: int = 5, until_at_ms: int = 100) -> c.KeepAnswer:
    answer = CachedAnswer(
        key=name.encode() * 32,
        text="x" * chars,
        model="tiny",
        made_at_ms=at_ms,
        until_at_ms=until_at_ms,
        build="tiny 1",
        confidence=0.5,
        simulated=True,
        usage=m.Usage(prompt_tokens=3),
    )
    return c.KeepAnswer(answer=answer, tenant="t")


async def listed(store: JobStore, query: JobQuery | None = None) -> list[Job]:
    """Return the jobs of a query's page, without where it goes on."""
    return list((await store.select(query or JobQuery())).jobs)
