"""Who may do what: every cell of the one table."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import (
    AdminOp,
    AdminReply,
    AnsweredBy,
    JobResult,
    JobStatus,
    JobView,
    OfflineMatch,
)
from fleet_protocol.roles import LADDER, LEAST, MEANINGS, Action, Deed, allowed, as_seen_by, require
from fleet_protocol.topics import Role

VIEWER = {
    Action.WATCH,
    AdminOp.WORKERS_LIST,
    AdminOp.WORKER_SHOW,
    AdminOp.JOBS_LIST,
    AdminOp.JOB_SHOW,
    AdminOp.COSTS,
    AdminOp.CACHE_STATS,
    AdminOp.ALERTS_LIST,
}
OPERATOR = VIEWER | {
    Action.READ_TEXTS,
    Action.ASK,
    AdminOp.JOB_CANCEL,
    AdminOp.JOB_RETRY,
    AdminOp.WORKER_DRAIN,
    AdminOp.WORKER_RESUME,
    AdminOp.WORKER_RELOAD,
    AdminOp.CACHE_ASK_AGAIN,
    AdminOp.ALERT_ACK,
}
ADMIN = {*Action, *AdminOp}
EXPECTED: dict[Role, set[Action | AdminOp]] = {
    Role.VIEWER: {*VIEWER},
    Role.OPERATOR: {*OPERATOR},
    Role.ADMIN: {*ADMIN},
}


@pytest.mark.parametrize("deed", [*Action, *AdminOp])
@pytest.mark.parametrize("role", list(Role))
def test_a_cell_is_as_it_is_written_here_too(role: Role, deed: Deed) -> None:
    is_expected = deed in EXPECTED.get(role, set())
    assert allowed(role, deed) is is_expected
    if is_expected:
        require(role, deed)
        return
    with pytest.raises(RejectedError) as refused:
        require(role, deed)
    assert refused.value.code == "not_authorized"
    assert refused.value.hint.startswith("ask as ")


def test_everything_that_can_be_asked_stands_in_the_table() -> None:
    assert set(LEAST) == set(MEANINGS) == {*Action, *AdminOp}
    assert len({deed.value for deed in LEAST}) == len(LEAST)


def test_a_higher_role_may_do_all_that_a_lower_one_may() -> None:
    for lower, higher in pairwise(LADDER):
        assert EXPECTED[lower] < EXPECTED[higher]


def test_a_viewer_reads_no_answer() -> None:
    result = JobResult(
        id="j",
        status=JobStatus.OK,
        text="the code is 4711",
        message="asked for the code",
        answered_by=AnsweredBy.OFFLINE,
        offline=OfflineMatch(entry="codes", kind="exact", score=1.0),
        worker="w1",
    )
    view = JobView(
        job="k",
        device="d",
        id="j",
        status=JobStatus.OK,
        priority=5,
        prompt_chars=3,
        received_at_ms=1,
        result=result,
    )
    reply = AdminReply(req="r", ok=True, jobs=(view,))
    seen = as_seen_by(Role.VIEWER, reply).jobs[0].result
    assert seen is not None
    assert (seen.text, seen.message, seen.offline, seen.worker) == ("", "", None, "w1")
    for role in (Role.OPERATOR, Role.ADMIN):
        assert as_seen_by(role, reply) is reply
