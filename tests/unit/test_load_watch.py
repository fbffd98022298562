"""What operators see of an overload, and what devices do, over a broker in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_dispatcher.adapters.memory_linux import LinuxMemory
from cloud_dispatcher.core.overload import OverloadSettings
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.service_house import TOPICS, House, Peer

QUICK = EngineSettings(overload=OverloadSettings(hold_ms=2_000, relief_ms=2_000))


class Overview:
    """An operator's screen."""

    def __init__(self, house: House, viewer: Peer) -> None:
        self.house, self.viewer = house, viewer
        self.heard: dict[str, int] = {}

    async def seconds(self, count: int) -> m.FleetSummary:
        """Let so many seconds pass; return the overview after them."""
        for _ in range(count):
            summary = await self._second()
        return summary

    async def _second(self) -> m.FleetSummary:
        self.house.clock.now_ms += 1_000
        now_ms = self.house.clock.now_ms
        self.viewer.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b"), "w9")
        return await self.viewer.until(m.FleetSummary, t.SUMMARY, lambda said: said.at_ms >= now_ms)

    async def alert(self, name: str) -> m.Alert | None:
        """Return the next word on an alert; None: it is cleared."""
        after = self.heard.get(name, 0)
        delivery = await self.viewer.hear_on(TOPICS.name(t.ALERTS, name), after=after)
        self.heard[name] = after + 1
        return codec.decode_as(m.Alert, delivery.payload) if delivery.payload else None


async def test_an_overload_is_shown_sheds_the_least_and_ends_by_itself(
    house: House, device: Peer, viewer: Peer
) -> None:
    house.settings, house.memory_pct = QUICK, 97.0
    screen = Overview(house, viewer)
    async with house.dispatcher():
        for name in ("overload", "overload-memory"):
            assert await screen.alert(name) is None  # what an earlier run left behind is cleared
        summary = await screen.seconds(3)
        assert (summary.load.step, summary.load.causes) == (1, ("memory",))
        alert = await screen.alert("overload-memory")
        assert alert is not None
        assert "97 %" in alert.detail
        alert = await screen.alert("overload")
        assert alert is not None
        assert alert.severity is m.Severity.WARNING
        assert "below 3 are refused" in alert.title
        device.say(t.SUBMIT, m.JobSubmit(prompt="low", priority=0), "d1", "1")
        device.say(t.SUBMIT, m.JobSubmit(prompt="high", priority=5), "d1", "2")
        ack = await device.ack("1")
        assert (ack.status, ack.code) == (m.AckStatus.REJECTED, "busy")
        assert ack.retry_after_ms > 0
        assert (await device.ack("2")).status is m.AckStatus.ACCEPTED
        await screen.seconds(4)
        alert = await screen.alert("overload")
        assert alert is not None
        assert (alert.severity, "step 2" in alert.title) == (m.Severity.CRITICAL, True)
        house.broker.forget_everything()
        await screen.seconds(1)
        assert await screen.alert("overload") == alert
        house.memory_pct = 40.0
        summary = await screen.seconds(8)
        assert (summary.load.step, summary.load.refused) == (0, 1)
        for name in ("overload-memory", "overload"):
            while await screen.alert(name) is not None:
                pass


class TestMemory:
    def machine(self, root: Path, *, group: str = "", **files: str) -> LinuxMemory:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/meminfo").write_text(
            "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\n"
        )
        (root / "proc/self/cgroup").write_text(f"0::/{group}\n")
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / f"memory.{name}").write_text(text)
        return LinuxMemory(root)

    def test_it_is_the_machines_without_a_limit(self, tmp_path: Path) -> None:
        assert self.machine(tmp_path, max="max\n", current="900").used_pct() == 60.0

    def test_it_is_the_groups_where_that_is_fuller(self, tmp_path: Path) -> None:
        memory = self.machine(
            tmp_path,
            group="system.slice/d.service",
            max="1000\n",
            current="950\n",
            stat="anon 5\ninactive_file 150\n",
        )
        assert memory.used_pct() == 80.0

    def test_a_roomy_group_does_not_hide_a_full_machine(self, tmp_path: Path) -> None:
        assert self.machine(tmp_path, max="1000", current="10", stat="").used_pct() == 60.0

    @pytest.mark.parametrize("text", ["", "garbage\n", "MemTotal: 0 kB\nMemAvailable: 0 kB\n"])
    def test_where_nobody_can_tell_nothing_is_guessed(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text(text)
        assert LinuxMemory(tmp_path).used_pct() is None
