"""What is known of a job that is named, while its latest values are on their way to the store."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters.store_memory import MemoryJobStore
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.commands import SaveJob
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.lookup import LookUp
from cloud_dispatcher.turn import Turn
from fleet_protocol import messages as m

JOB = Job(
    key=m.JobKey("K1"),
    device=m.DeviceId("d1"),
    id=m.JobId("j1"),
    submit=m.JobSubmit(prompt="Is it safe?"),
    received_at_ms=1,
)
STORED, UNDER_WAY, PUT_OFF, DECIDED = (replace(JOB, attempt=number) for number in range(4))
NONE: dict[m.JobKey, Job] = {}


def saves(job: Job) -> dict[m.JobKey, Job]:
    return {job.key: job}


@pytest.mark.parametrize(
    ("decided", "unsaved", "latest"),
    [
        (None, (NONE, NONE), STORED),
        (None, (NONE, saves(UNDER_WAY)), UNDER_WAY),
        (None, (saves(PUT_OFF), saves(UNDER_WAY)), PUT_OFF),
        (DECIDED, (saves(PUT_OFF), saves(UNDER_WAY)), DECIDED),
    ],
)
def test_an_operator_gets_the_latest_value_of_a_job_saved_or_not(
    decided: Job | None, unsaved: tuple[dict[m.JobKey, Job], ...], latest: Job
) -> None:
    turn = Turn()
    if decided is not None:
        turn.decide(e.TimePassed(), [SaveJob(job=decided)], 0)
    engine = Engine(EngineSettings(), "epoch")
    lookup = LookUp(MemoryJobStore(), None, engine=engine)  # type: ignore[arg-type]  # not asked here
    request = m.AdminRequest(req="r", op=m.AdminOp.JOB_SHOW, job=STORED.key)
    informed = lookup.again(e.AdminAsked(admin="a1", request=request, found=STORED), turn, unsaved)
    assert isinstance(informed, e.AdminAsked)
    assert informed.found is latest
