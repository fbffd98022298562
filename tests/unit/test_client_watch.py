"""The picture of a fleet, message by message."""

from __future__ import annotations

import pytest

from fleet_client.watch import FleetPicture
from fleet_protocol.codec import encode
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import (
    Activity,
    DispatcherPresence,
    DispatcherStatus,
    FleetSummary,
    Message,
    Presence,
    PresenceStatus,
    WorkerState,
)
from fleet_protocol.topics import Topics

TOPICS = Topics()
ONLINE = Presence(status=PresenceStatus.ONLINE, boot="b1")


def after(picture: FleetPicture, topic: str, message: Message | bytes) -> FleetPicture:
    payload = message if isinstance(message, bytes) else encode(message)
    return picture.after(TOPICS.parse(f"fleet/v1/{topic}"), payload)


def test_a_worker_is_what_its_messages_say_in_any_order() -> None:
    state = WorkerState(ts=1, seq=0, status=Activity.IDLE, cpu_pct=1.0, mem_pct=2.0, inflight=0)
    picture = after(FleetPicture(), "workers/w1/state", state)
    assert picture.online_workers == ()
    picture = after(picture, "workers/w1/presence", ONLINE)
    assert picture.online_workers == ("w1",)
    assert picture.workers["w1"].state == state


def test_a_worker_that_was_removed_is_gone() -> None:
    picture = after(FleetPicture(), "workers/w1/presence", ONLINE)
    assert after(picture, "workers/w1/presence", b"").workers == {}


def test_a_dispatcher_is_there_from_its_word_to_its_will() -> None:
    def word(status: DispatcherStatus) -> DispatcherPresence:
        return DispatcherPresence(status=status, epoch="e1")

    assert not FleetPicture().has_dispatcher
    picture = after(FleetPicture(), "fleet/dispatcher", word(DispatcherStatus.ONLINE))
    assert picture.has_dispatcher
    assert not after(picture, "fleet/dispatcher", word(DispatcherStatus.OFFLINE)).has_dispatcher


def test_the_newest_summary_counts() -> None:
    picture = after(FleetPicture(), "fleet/summary", FleetSummary(at_ms=1, queued=5))
    picture = after(picture, "fleet/summary", FleetSummary(at_ms=2, queued=3))
    assert picture.summary == FleetSummary(at_ms=2, queued=3)


def test_weights_are_put_beside_the_workers_that_are_known() -> None:
    picture = after(FleetPicture(), "workers/w1/presence", ONLINE)
    assert picture.with_weights({"w1": 0.5, "w9": 1.0}).workers["w1"].weight == 0.5
    assert list(picture.with_weights({"w9": 1.0}).workers) == ["w1"]


def test_a_picture_that_was_handed_out_never_changes() -> None:
    before = after(FleetPicture(), "workers/w1/presence", ONLINE)
    after(before, "workers/w2/presence", ONLINE)
    assert before.online_workers == ("w1",)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ProtocolError):
        after(FleetPicture(), "workers/w1/presence", b"\xff")
