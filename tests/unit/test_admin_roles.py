"""Roles at the dispatcher: the topic says the role, and the table what it may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.access import Identity
from fleet_protocol.roles import LADDER, allowed
from fleet_protocol.topics import Role
from tests.unit.service_house import QUESTION, House, Peer, Worker


@pytest.fixture
async def ann(house: House) -> AsyncIterator[Peer]:
    """Somebody who hears what is told to all roles below her own id."""
    async with house.peer(Peer, "ann", "+/ann") as peer:
        yield peer


def asking(op: m.AdminOp, *, job: str = "nobody", req: str = "r1") -> m.AdminRequest:
    return m.AdminRequest(req=m.Id(req), op=op, job=m.Id(job), worker=m.Id("w9"))


@pytest.mark.parametrize("op", list(m.AdminOp))
@pytest.mark.parametrize("role", LADDER)
async def test_each_role_is_told_what_is_not_for_it(
    house: House, ann: Peer, role: Role, op: m.AdminOp
) -> None:
    async with house.dispatcher() as service:
        ann.say(t.REQUESTS[role], asking(op), "ann")
        reply = await ann.read(m.AdminReply, t.REPLIES[role], "ann")
        refused = service._intake.dropped["not_authorized"]
    assert (reply.code == "not_authorized") is not allowed(role, op)
    assert refused == (0 if allowed(role, op) else 1)
    if reply.code == "not_authorized":
        assert f"not for the role {role}" in reply.message
        assert "ask as " in reply.message


async def test_a_viewers_command_changes_nothing(house: House, worker: Worker, ann: Peer) -> None:
    drain = m.AdminRequest(req=m.Id("r1"), op=m.AdminOp.WORKER_DRAIN, worker=m.Id("w1"))
    async with house.dispatcher():
        async with house.peer(Peer, "d1", "dev/d1") as device:
            device.say(t.SUBMIT, QUESTION, "d1", "j1")
            got = await worker.assignment()
            ann.say(t.VIEWER_REQUEST, drain, "ann")
            ann.say(t.VIEWER_REQUEST, asking(m.AdminOp.JOB_CANCEL, job=got.job), "ann")
            codes = [
                (await ann.read(m.AdminReply, t.VIEWER_REPLY, "ann", after=at)).code
                for at in (0, 1)
            ]
            worker.done(got)
            assert (await device.result("j1")).status is m.JobStatus.OK
        ann.say(t.OPERATOR_REQUEST, drain, "ann")
        assert (await ann.read(m.AdminReply, t.OPERATOR_REPLY, "ann")).ok
        await worker.hear(t.COMMAND, "w1")
    assert codes == ["not_authorized"] * 2
    commands = [heard for heard in worker.heard if heard.topic.endswith("/cmd")]
    assert len(commands) == 1, "the operator's"


@pytest.mark.parametrize(("role", "text"), [(Role.VIEWER, ""), (Role.OPERATOR, "It is so.")])
async def test_a_viewer_sees_that_a_job_was_answered_and_not_what(
    house: House, device: Peer, worker: Worker, ann: Peer, role: Role, text: str
) -> None:
    async with house.dispatcher() as service:
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        got = await worker.assignment()
        worker.done(got)
        await device.result("j1")
        await house.until(lambda: service._engine.get(got.job) is None)
        ann.say(t.REQUESTS[role], asking(m.AdminOp.JOB_SHOW, job=got.job), "ann")
        (job,) = (await ann.read(m.AdminReply, t.REPLIES[role], "ann")).jobs
    assert job.result is not None
    assert (job.result.status, job.result.text) == (m.JobStatus.OK, text)


async def test_who_asked_as_what_and_was_refused_is_heard_by_the_audit_log(
    house: House, ann: Peer
) -> None:
    heard: list[tuple[Identity, m.AdminOp, str]] = []
    house.inquired = lambda who, request, code: heard.append((who, request.op, code))
    async with house.dispatcher():
        ann.say(t.VIEWER_REQUEST, asking(m.AdminOp.JOB_RETRY), "ann")
        await ann.read(m.AdminReply, t.VIEWER_REPLY, "ann")
        ann.say(t.VIEWER_REQUEST, asking(m.AdminOp.COSTS), "ann")
        await ann.read(m.AdminReply, t.VIEWER_REPLY, "ann", after=1)
    who = Identity(role=Role.VIEWER, id="ann")
    assert heard == [
        (who, m.AdminOp.JOB_RETRY, "not_authorized"),
        (who, m.AdminOp.COSTS, ""),
    ]


async def test_what_cannot_be_read_is_answered_where_it_was_asked(house: House, ann: Peer) -> None:
    async with house.dispatcher():
        ann.throw("fleet/v1/operator/ann/req", b'{"req":"r1","op":"jobs.eat"}')
        reply = await ann.read(m.AdminReply, t.OPERATOR_REPLY, "ann")
    assert (reply.req, reply.ok) == ("r1", False)
