"""`fleet jobs ls` where the dispatcher looks at a part of its jobs with each request."""

from __future__ import annotations

import pytest

from fleet_cli.commands.jobs import find_jobs
from fleet_client.admin import AdminClient
from fleet_protocol.codec import decode_as, encode
from fleet_protocol.messages import (
    AdminReply,
    AdminRequest,
    DeviceId,
    JobId,
    JobKey,
    JobStatus,
    JobView,
    WorkerId,
)

KEYS = [f"01JD00000000000000000000{number:02}" for number in range(60, 10, -1)]
"""Fifty jobs, newest first."""


class Dispatcher:
    """Looks at seven jobs a request, and tells those that are one worker's."""

    def __init__(self) -> None:
        self.client = AdminClient("mqtt://127.0.0.1:1", "ops")
        self.client._link = self  # type: ignore[assignment]
        self.limits: list[int] = []

    def publish(self, topic: str, payload: bytes, *, token: object) -> None:  # noqa: ARG002 - the link's
        asked = decode_as(AdminRequest, payload)
        self.limits.append(asked.limit)
        older = [key for key in KEYS if asked.before is None or key < asked.before]
        looked = older[:7]
        found = [key for key in looked if int(key[-2:]) % 3 == 0][: asked.limit]
        is_full = len(found) == asked.limit
        is_all = len(older) <= len(looked)
        go_on = None if is_full or is_all else looked[-1]
        reply = AdminReply(req=asked.req, ok=True, jobs=tuple(map(_view, found)), go_on=go_on)
        self.client.message_arrived(topic, encode(reply))


def _view(key: str) -> JobView:
    return JobView(
        job=JobKey(key),
        device=DeviceId("d1"),
        id=JobId(key),
        status=JobStatus.RUNNING,
        attempts=1,
        received_at_ms=1,
        priority=5,
        prompt_chars=9,
    )


@pytest.mark.parametrize("limit", [1, 3, 10, 16, 17, 1_000])
def test_as_many_jobs_are_found_as_were_asked_for_over_as_many_pages_as_it_takes(
    limit: int,
) -> None:
    dispatcher, worker = Dispatcher(), WorkerId("w3")
    found = find_jobs(dispatcher.client, {"worker": worker, "limit": limit})
    wanted = [key for key in KEYS if int(key[-2:]) % 3 == 0]
    assert [job.job for job in found] == wanted[:limit]
    assert dispatcher.limits[0] == limit
    assert min(dispatcher.limits) >= 1


def test_a_list_goes_on_where_another_one_ended() -> None:
    dispatcher = Dispatcher()
    first = find_jobs(dispatcher.client, {"limit": 5})
    rest = find_jobs(dispatcher.client, {"limit": 1_000, "before": first[-1].job})
    keys = [job.job for job in (*first, *rest)]
    assert keys == [key for key in KEYS if int(key[-2:]) % 3 == 0]
