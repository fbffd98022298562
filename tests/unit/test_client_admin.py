"""What the operator's side makes of the answers of one dispatcher, or of several."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_client.admin import AdminClient
from fleet_protocol.codec import decode_as, encode
from fleet_protocol.messages import AdminReply, AdminRequest, PresenceStatus, WorkerView


class Members:
    """Dispatchers that each list their own workers, some rows a page."""

    def __init__(self, *shares: list[str], rows: int) -> None:
        self.client = AdminClient("mqtt://127.0.0.1:1", "ops")
        self.client._link = self  # type: ignore[assignment]
        self.asked = 0
        self._shares = shares
        self._rows = rows

    def publish(self, topic: str, payload: bytes, *, token: object) -> None:  # noqa: ARG002 - the link's
        request = decode_as(AdminRequest, payload)
        self.asked += 1
        for share in self._shares:
            left = [name for name in sorted(share) if name > (request.after or "")]
            reply = AdminReply(
                req=request.req,
                ok=True,
                workers=tuple(map(_view, left[: self._rows])),
                members=len(self._shares),
                go_on=left[self._rows - 1] if len(left) > self._rows else None,
            )
            self.client.message_arrived(topic, encode(reply))


def _view(name: str) -> WorkerView:
    shares: dict[str, Any] = dict.fromkeys(("weight", "compute", "bandwidth"), 0.5)
    return WorkerView(worker=name, status=PresenceStatus.ONLINE, inflight=0, slots=1, **shares)


@pytest.mark.parametrize(
    "shares",
    [
        [[]],
        [["a"]],
        [list("hagfedcbi")],
        [list("acegi"), list("bdfh")],
        [list("abcdefgh"), ["i"]],
        [["i"], list("abc"), list("defgh")],
    ],
)
def test_all_workers_are_listed_once_by_name_however_they_are_shared(
    shares: list[list[str]],
) -> None:
    members = Members(*shares, rows=2)
    listed = [view.worker for view in members.client.workers()]
    assert listed == sorted(name for share in shares for name in share)
    assert members.asked <= len(listed) // 2 + 1
