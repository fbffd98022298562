"""What operators see and say of alerts, over a broker in memory, and what a restart leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cloud_dispatcher.adapters.alert_file import AlertFile
from cloud_dispatcher.alert_watch import AlertWatch
from cloud_dispatcher.core.alert_log import AlertLog
from cloud_dispatcher.core.overload import OverloadSettings
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.intake import AlertsAsked
from cloud_dispatcher.ports import StoreUnavailableError
from cloud_dispatcher.publisher import Publisher
from fleet_client.admin import _joined as joined
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.bus import Session
from fleet_protocol.memory import MemoryBroker, MemoryBus
from tests.unit.service_house import TOPICS, House, Peer

QUICK = EngineSettings(overload=OverloadSettings(hold_ms=2_000, relief_ms=2_000))
MEMORY = "overload-memory"
ACK_B = {"alert": "store-b"}


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A dispatcher whose machine is short of memory, or not, as a test wants."""
    house = House()
    house.settings = QUICK
    house.alerts = AlertFile(tmp_path / "dispatcher.alerts")
    return house


class Operator:
    """Asks, lets seconds pass, and sees the alert about memory."""

    def __init__(self, house: House, admin: Peer, viewer: Peer) -> None:
        self._house, self._admin, self._viewer = house, admin, viewer
        self._asked = 0

    async def asks(self, op: m.AdminOp, **fields: object) -> m.AdminReply:
        self._asked += 1
        request = m.AdminRequest(req=f"r{self._asked}", op=op, **fields)
        self._admin.say(t.ADMIN_REQUEST, request, "a1")
        return await self._admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=self._asked - 1)

    async def listed(self) -> dict[str, m.Alert]:
        """Return the newest alert of each name."""
        views = (await self.asks(m.AdminOp.ALERTS_LIST)).alerts
        return {view.id: view for view in reversed(views)}

    async def until_told(self, met: Callable[[m.Alert | None], bool]) -> m.Alert | None:
        """Let time pass until the newest word on the alert says so; None: it is cleared."""
        topic = TOPICS.name(t.ALERTS, MEMORY)
        while True:
            newest = [d.payload for d in self._viewer.heard if d.topic == topic][-1:]
            alert = codec.decode_as(m.Alert, newest[0]) if newest and newest[0] else None
            if newest and met(alert):
                return alert
            self._house.clock.now_ms += 1_000
            online = m.Presence(status=m.PresenceStatus.ONLINE, boot="b")
            self._viewer.say(t.PRESENCE, online, "w9")
            await self._viewer.listen()


@pytest.fixture
def operator(house: House, admin: Peer, viewer: Peer) -> Operator:
    return Operator(house, admin, viewer)


def fires(alert: m.Alert | None) -> bool:
    return alert is not None


def is_over(alert: m.Alert | None) -> bool:
    return alert is None


async def test_an_alert_fires_is_looked_after_and_is_over(house: House, operator: Operator) -> None:
    house.memory_pct = 97.0
    async with house.dispatcher():
        fired = await operator.until_told(fires)
        assert fired is not None
        reply = await operator.asks(m.AdminOp.ALERT_ACK, alert=MEMORY)
        assert (reply.ok, reply.message) == (True, "a1 looks after it")
        told = await operator.until_told(lambda alert: alert is not None and alert.acked_by == "a1")
        assert told is not None
        assert (told.since_at_ms, told.title) == (fired.since_at_ms, fired.title)
        house.memory_pct = 20.0
        await operator.until_told(is_over)
        view = (await operator.listed())[MEMORY]
    assert view.resolved_at_ms is not None
    assert (view.since_at_ms, view.acked_by) == (fired.since_at_ms, "a1")
    assert view.since_at_ms <= (view.acked_at_ms or 0) <= view.resolved_at_ms


async def test_the_history_outlives_the_dispatcher(house: House, operator: Operator) -> None:
    house.memory_pct = 97.0
    async with house.dispatcher():
        fired = await operator.until_told(fires)
        await operator.asks(m.AdminOp.ALERT_ACK, alert=MEMORY)
    assert fired is not None
    async with house.dispatcher() as service:
        # It takes its time to fire again; meanwhile it is the same alert, and somebody's.
        while not service.alerts.find(MEMORY) or service._engine.load().step == 0:
            house.clock.now_ms += 1_000
            await operator.listed()
        view = (await operator.listed())[MEMORY]
    assert (view.since_at_ms, view.acked_by, view.resolved_at_ms) == (
        fired.since_at_ms,
        "a1",
        None,
    )


async def test_what_the_last_run_left_firing_and_is_not_so_any_more_is_over(
    house: House, operator: Operator
) -> None:
    house.memory_pct = 97.0
    async with house.dispatcher():
        await operator.until_told(fires)
        await operator.listed()
    house.memory_pct = 20.0
    async with house.dispatcher():
        await operator.until_told(is_over)
        assert (await operator.listed())[MEMORY].resolved_at_ms is not None


async def test_what_does_not_fire_cannot_be_looked_after(house: House, operator: Operator) -> None:
    async with house.dispatcher():
        for name in (MEMORY, "nothing", None):
            reply = await operator.asks(m.AdminOp.ALERT_ACK, alert=name)
            assert (reply.ok, reply.code) == (False, "unknown_alert")
            assert "fleet alerts ls" in reply.message


async def test_a_full_disk_keeps_nobody_from_looking_after_an_alert(
    house: House, operator: Operator, tmp_path: Path
) -> None:
    house.alerts = AlertFile(tmp_path / "not_there" / "dispatcher.alerts")
    house.memory_pct = 97.0
    async with house.dispatcher():
        await operator.until_told(fires)
        with capture_logs() as lines:
            reply = await operator.asks(m.AdminOp.ALERT_ACK, alert=MEMORY)
            assert reply.ok
            assert "not on the disk yet" in reply.message
            # There is room again: it is saved by itself.
            (tmp_path / "not_there").mkdir()
            kept = tmp_path / "not_there" / "dispatcher.alerts"
            while not kept.exists():
                house.clock.now_ms += 1_000
                await operator.listed()
    assert {line["event"] for line in lines} >= {"alerts.not_saved"}
    views = json.loads(kept.read_text())
    assert [view["acked_by"] for view in views if view["id"] == MEMORY] == ["a1"]


@pytest.mark.parametrize("left", [b"[{]", b'[{"id":"\xff\xfe"}]', b"\0" * 99, b"[" * 9_999])
async def test_a_file_that_cannot_be_read_stops_nobody(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "dispatcher.alerts"
    path.write_bytes(left)
    file = AlertFile(path)
    with capture_logs() as lines:
        assert file.load() == ()
    assert lines[0]["event"] == "alerts.unreadable"
    assert (tmp_path / "dispatcher.alerts.unreadable").read_bytes() == left
    log = AlertLog()
    log.fire(m.Alert(id="a", severity=m.Severity.INFO, title="t", since_at_ms=1))
    await file.save(log.views())
    assert file.load() == log.views()


async def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "dispatcher.alerts"
    file = AlertFile(path)
    await file.save(())
    (tmp_path / "dispatcher.alerts.new").mkdir()
    with pytest.raises(StoreUnavailableError) as raised:
        await file.save(())
    assert "make room" in raised.value.hint
    assert file.load() == ()


async def test_of_several_dispatchers_each_answers_for_its_own() -> None:
    async with MemoryBus(MemoryBroker(seed=1), Session(client_id="d")) as bus:
        replies = []
        for name, fires_here in (("a", True), ("b", True), ("c", False)):
            publisher = Publisher(bus, TOPICS, signature=f"-{name}")
            watch = AlertWatch(publisher, None, clock=lambda: 5, members=lambda: 3)
            if fires_here:
                alert = m.Alert(id="store", severity=m.Severity.CRITICAL, title="t", since_at_ms=1)
                publisher.alert(alert)
            for op, fields in ((m.AdminOp.ALERTS_LIST, {}), (m.AdminOp.ALERT_ACK, ACK_B)):
                request = m.AdminRequest(req="r", op=op, **fields)
                replies.append(await watch.answer(AlertsAsked("ann", request)))
    lists, acks = replies[::2], replies[1::2]
    assert [view.id for view in joined(lists[2], lists).alerts] == ["store-a", "store-b"]
    assert [reply.ok for reply in acks] == [False, True, False]
    # Whoever asked hears of the one that could.
    assert joined(acks[0], acks).alerts[0].acked_by == "ann"
    assert {reply.members for reply in replies} == {3}
