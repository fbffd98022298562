"""What those who look after a fleet are told of its jobs, by the service as a whole."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from msgspec.structs import replace

from cloud_dispatcher.adapters.store_memory import MemoryJobStore
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import BudgetSettings, TenantSettings
from cloud_dispatcher.ports import JobPage, JobQuery
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.errors import ConfigError
from tests.contract.job_samples import FULL
from tests.unit.service_house import House, Peer, Worker

QUESTION: Final = m.JobSubmit(prompt="Is it safe?", cache=m.Caching.OFF)


async def ask(admin: Peer, op: m.AdminOp, **fields: Any) -> m.AdminReply:
    """Ask as the admin a1, and wait for the reply."""
    after = sum(1 for heard in admin.heard if heard.topic.endswith("admin/a1/res"))
    admin.say(t.ADMIN_REQUEST, m.AdminRequest(req=f"r{after}", op=op, **fields), "a1")
    return await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=after)


def names(reply: m.AdminReply) -> list[str]:
    assert reply.ok, reply
    return [job.id for job in reply.jobs]


async def test_a_job_is_shown_though_its_result_is_confirmed_in_the_same_turn(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    """The broker's word waits for a turn; what begins it may be the question for that very job."""
    async with house.dispatcher():
        for number in range(5):
            name = f"job-{number}"
            device.say(t.SUBMIT, QUESTION, "d1", name)
            got = await worker.assignment(after=number)
            worker.done(got)
            await device.result(name)
            shown = await ask(admin, m.AdminOp.JOB_SHOW, job=got.job)
            assert (shown.code, names(shown)) == ("", [name])
            assert shown.jobs[0].status is m.JobStatus.OK


async def test_the_attempts_of_a_job_are_shown_and_not_listed(house: House, admin: Peer) -> None:
    """Of a thousand jobs in a list each may have had sixteen."""
    job = replace(FULL, finished_at_ms=house.clock.now_ms)
    await house.store.commit([job])
    async with house.dispatcher():
        (listed,) = (await ask(admin, m.AdminOp.JOBS_LIST)).jobs
        (shown,) = (await ask(admin, m.AdminOp.JOB_SHOW, job=job.key)).jobs
    assert (listed.job, listed.past) == (job.key, ())
    assert shown.past == job.past != ()


async def test_jobs_are_listed_page_by_page_and_by_what_became_of_them(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    async with house.dispatcher():
        began_ms = house.clock.now_ms
        for number in range(4):
            device.say(t.SUBMIT, QUESTION, "d1", f"job-{number}")
            worker.done(await worker.assignment(after=number))
            await device.result(f"job-{number}")
            house.clock.now_ms += 1_000
        ls = m.AdminOp.JOBS_LIST
        first = await ask(admin, ls, limit=3)
        assert names(first) == ["job-3", "job-2", "job-1"]
        assert first.go_on == first.jobs[-1].job
        rest = await ask(admin, ls, limit=3, before=first.go_on)
        assert (names(rest), rest.go_on) == (["job-0"], None)
        newer = await ask(admin, ls, limit=2, after=rest.jobs[0].job)
        assert (names(newer), newer.go_on) == (["job-2", "job-1"], first.jobs[1].job)
        assert names(await ask(admin, ls, since_ms=began_ms + 1_000)) == names(first)
        assert names(await ask(admin, ls, until_ms=began_ms + 1_000)) == ["job-0"]
        span = {"since_ms": began_ms + 1_000, "until_ms": began_ms + 3_000}
        assert names(await ask(admin, ls, **span)) == ["job-2", "job-1"]
        assert names(await ask(admin, ls, after=rest.jobs[0].job, **span, limit=1)) == ["job-1"]
        assert len((await ask(admin, ls, worker="w1", route=m.AnsweredBy.EDGE)).jobs) == 4
        assert names(await ask(admin, ls, worker="w2")) == []
        assert names(await ask(admin, ls, text="B-2")) == ["job-2"]
        assert names(await ask(admin, ls, jobs=(rest.jobs[0].job, "none"))) == ["job-0"]


async def test_a_tenants_jobs_are_those_of_its_devices(
    house: House, device: Peer, admin: Peer
) -> None:
    north = TenantSettings(name="north", devices=("d*",))
    house.settings = EngineSettings(budget=BudgetSettings(tenants=(north,)))
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "mine")
        await device.ack("mine")
        assert names(await ask(admin, m.AdminOp.JOBS_LIST, of_tenant="north")) == ["mine"]
        assert names(await ask(admin, m.AdminOp.JOBS_LIST, of_tenant="default")) == []
        # What an older client says of itself with every request is no filter.
        assert names(await ask(admin, m.AdminOp.JOBS_LIST, tenant="default")) == ["mine"]


async def test_a_request_that_names_no_such_route_is_refused_with_the_reason(
    house: House, admin: Peer
) -> None:
    async with house.dispatcher():
        admin.throw("fleet/v1/admin/a1/req", b'{"req":"r1","op":"jobs.ls","route":"moon"}')
        reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1")
    assert (reply.ok, reply.req) == (False, "r1")
    assert "route" in reply.message


class _SlowLists(MemoryJobStore):
    """A store whose lists take as long as the test wants, and break if it wants that."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def select(self, query: JobQuery) -> JobPage:
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return await super().select(query)


async def test_whoever_looks_through_all_jobs_keeps_no_job_waiting(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    house.store = store = _SlowLists()
    async with house.dispatcher():
        listing = asyncio.create_task(ask(admin, m.AdminOp.JOBS_LIST, text="nothing"))
        for number in range(3):
            device.say(t.SUBMIT, QUESTION, "d1", f"job-{number}")
            worker.done(await worker.assignment(after=number))
            await device.result(f"job-{number}")
        assert not listing.done()
        store.go_on.set()
        assert names(await listing) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a row is sealed", code="no_key"), "no_key"),
        (ValueError("a row makes no sense"), "internal"),
    ],
)
async def test_a_row_that_cannot_be_read_costs_one_answer_and_not_the_dispatcher(
    house: House, device: Peer, admin: Peer, error: Exception, code: str
) -> None:
    house.store = store = _SlowLists()
    store.go_on.set()
    async with house.dispatcher():
        store.error = error
        assert (await ask(admin, m.AdminOp.JOBS_LIST)).code == code
        store.error = None
        device.say(t.SUBMIT, QUESTION, "d1", "job-1")
        assert (await device.ack("job-1")).status is m.AckStatus.ACCEPTED
        assert names(await ask(admin, m.AdminOp.JOBS_LIST)) == ["job-1"]


async def test_too_many_requests_at_once_are_refused(house: House, admin: Peer) -> None:
    house.store = store = _SlowLists()
    async with house.dispatcher():
        for number in range(600):
            request = m.AdminRequest(req=f"r{number}", op=m.AdminOp.JOBS_LIST)
            admin.say(t.ADMIN_REQUEST, request, "a1")
        refused = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1")
        assert refused.code == "busy"
        store.go_on.set()
        replies = [
            await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=after) for after in range(600)
        ]
    assert {reply.req for reply in replies} == {f"r{number}" for number in range(600)}
    assert sum(reply.ok for reply in replies) >= 500
