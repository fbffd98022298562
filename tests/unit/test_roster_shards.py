"""The worker table and the history, as pages get them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from cloud_dispatcher.history import COLUMNS as HISTORY_COLUMNS
from cloud_dispatcher.history import History
from cloud_dispatcher.publisher import Publisher
from cloud_dispatcher.roster_shards import COLUMNS, SHARDS, RosterShards, row_of, shard_of
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.topics import Channel


class Told(Publisher):
    """Keeps what would be published."""

    def __init__(self) -> None:
        self.shards: list[m.RosterShard] = []

    def send(self, channel: Channel, message: m.Message, *ids: str) -> bool:
        assert channel is t.ROSTER
        assert isinstance(message, m.RosterShard)
        assert ids == (str(message.shard),)
        self.shards.append(message)
        return True


def view(worker: str, status: m.PresenceStatus = m.PresenceStatus.ONLINE) -> m.WorkerView:
    return m.WorkerView(
        worker=m.WorkerId(worker),
        status=status,
        weight=0.5,
        compute=0.6,
        bandwidth=0.4,
        inflight=1,
        slots=2,
    )


class Fleet:
    def __init__(self, *views: m.WorkerView) -> None:
        self.views: Sequence[m.WorkerView] = views
        self.told = Told()
        self.roster = RosterShards(
            self.told,
            roll=lambda: [(m.WorkerId(one.worker), one.status) for one in self.views],
            view=lambda worker: next((x for x in self.views if x.worker == worker), None),
        )

    async def look(self, second: int) -> list[m.RosterShard]:
        self.told.shards.clear()
        await self.roster.keep(1_000 * second)
        return list(self.told.shards)


async def test_at_first_all_shards_are_told_and_then_each_every_four_seconds() -> None:
    fleet = Fleet(*(view(f"w{number}") for number in range(200)))
    assert [shard.shard for shard in await fleet.look(0)] == list(range(SHARDS))
    for start in (0, 4):
        later = [
            shard.shard for second in range(4) for shard in await fleet.look(start + second + 1)
        ]
        assert sorted(later) == list(range(SHARDS))


async def test_a_busy_dispatcher_tells_one_shard_at_a_time() -> None:
    fleet = Fleet(*(view(f"w{number}") for number in range(200)))
    await fleet.look(0)
    told = []
    for at_ms in range(1_010, 5_000, 10):
        fleet.told.shards.clear()
        await fleet.roster.keep(at_ms)
        told.append(len(fleet.told.shards))
    assert max(told) <= 4
    assert max(told[100:]) == 1


async def test_at_once_nothing_is_told_twice() -> None:
    fleet = Fleet(view("w1"))
    await fleet.look(0)
    fleet.told.shards.clear()
    await fleet.roster.keep(100)
    assert fleet.told.shards == []


async def test_who_came_or_went_is_told_at_the_next_look() -> None:
    fleet = Fleet(view("w1"))
    await fleet.look(0)
    for second, views in enumerate([(view("w1", m.PresenceStatus.OFFLINE),), ()], start=1):
        fleet.views = views
        told = {shard.shard: shard.rows for shard in await fleet.look(second)}
        assert told[shard_of("w1")] == tuple(map(row_of, views))


async def test_an_empty_fleet_is_told_once() -> None:
    fleet = Fleet()
    assert all(shard.rows == () for shard in await fleet.look(0))
    assert [await fleet.look(second) for second in range(1, 9)] == [[]] * 8
    fleet.roster.announce()
    assert len(await fleet.look(9)) == SHARDS


def test_a_row_has_what_the_columns_say() -> None:
    info = m.WorkerInfo(
        boot=m.Id("b"),
        board="Raspberry Pi 5",
        benchmark=m.Benchmark(decode_tok_s=21.26, prefill_tok_s=90.0),
        models=(m.ModelInfo(name="tiny", version="1", context_tokens=512),),
    )
    state = m.WorkerState(
        ts=1, seq=0, status=m.Activity.BUSY, cpu_pct=81.6, mem_pct=40.2, inflight=1, temp_c=64.25
    )
    known = msgspec.structs.replace(view("w1"), info=info, state=state)
    row = dict(zip(COLUMNS, row_of(known), strict=True))
    assert (row["board"], row["model"], row["measured_tok_s"]) == ("Raspberry Pi 5", "tiny", 21.3)
    assert (row["temp_c"], row["cpu_pct"], row["throttled"]) == (64.2, 82, None)
    assert len(row_of(view("w1"))) == len(COLUMNS)


def test_history_is_fine_for_an_hour_and_coarse_for_a_day() -> None:
    history = History()
    for second in range(0, 30 * 3_600, 1):
        if second % 5 == 0 or second % 7 == 0:
            history.note(m.FleetSummary(at_ms=1_000 * second, answered_by={"edge": second}))
    samples = history.samples()
    at_s = [sample.at_ms // 1_000 for sample in samples]
    assert at_s == sorted(set(at_s))
    end_s = at_s[-1]
    assert end_s - at_s[0] >= 22 * 3_600
    last_hour = [second for second in at_s if second > end_s - 3_500]
    assert max(b - a for a, b in pairwise(last_hour)) < 10
    assert samples[-1].edge == end_s
    assert len(msgspec.to_builtins(samples[-1])) == len(HISTORY_COLUMNS)
