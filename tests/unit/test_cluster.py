"""Several dispatchers: each one's share, who speaks for all, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_dispatcher.adapters.cluster_memory import MemoryCluster, MemoryClusterStore
from cloud_dispatcher.cli.exits import Exit
from cloud_dispatcher.cli.main import main
from cloud_dispatcher.cluster import Cluster
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import Job, ReplyTo
from cloud_dispatcher.core.members import Figures, Member, MemberId, leads, offers_to, share_of
from cloud_dispatcher.core.overview import merged
from cloud_dispatcher.membership import MemberFencedError
from cloud_dispatcher.ports import StoreUnavailableError
from fleet_protocol import messages as m

ROOM = Figures(room=4, contexts={"": 512})
FULL = Figures(waiting=9, room=-9)


def members(*figures: Figures) -> list[Member]:
    names = "abc"[: len(figures)]
    return [Member(id=MemberId(n), name=n, figures=f) for n, f in zip(names, figures, strict=True)]


class NoLines:
    are_up = True

    def listen(self, workers: object) -> None:
        del workers

    def forget(self, workers: object) -> None:
        del workers


class Seat:
    """One member at the table, with what its engine was told."""

    def __init__(self, table: MemoryCluster, name: str) -> None:
        self.told: list[e.AnyEvent] = []
        self.figures = Figures()
        self.lines = NoLines()
        self.store = MemoryClusterStore(table, name=name, member=MemberId(f"{name}-1"))
        self.cluster = Cluster(
            self.store,
            figures=lambda: self.figures,
            report=self.told.append,
            clock=table.now_ms,
            lines=self.lines,
        )

    async def deals_with(self, event: e.AnyEvent, *known: Job) -> bool:
        names = {(str(job.device), str(job.id)): job for job in known}
        keys = {str(job.key): job for job in known}
        return await self.cluster.ours([event], names, keys, ()) == [event]


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def seats(clock: Clock) -> Sequence[Seat]:
    table = MemoryCluster(clock)
    seated = [Seat(table, name) for name in "ab"]
    for _ in range(2):
        for seat in seated:
            await (seat.cluster.beat() if seat.cluster.members else seat.cluster.__aenter__())
    return seated


def job(key: str = "K1", **fields: object) -> Job:
    return Job(
        key=m.JobKey(key),
        device=m.DeviceId("d1"),
        id=m.JobId("1"),
        submit=m.JobSubmit(prompt="Is the hall warm?"),
        received_at_ms=1,
        reply=ReplyTo(),
        **fields,  # type: ignore[arg-type]  # a test's shorthand
    )


def ended(one: Job) -> dict[str, object]:
    return {"result": m.JobResult(id=one.id, status=m.JobStatus.FAILED), "told": True}


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("count", "workers", "shares"),
    [(3, 0, [0, 0, 0]), (3, 1, [1, 0, 0]), (3, 4, [2, 1, 1]), (2, 7, [4, 3]), (1, 5, [5])],
)
def test_every_worker_is_one_members_share(count: int, workers: int, shares: list[int]) -> None:
    there = members(*[ROOM] * count)
    assert [share_of(there, member.id, workers) for member in there] == shares


def test_who_is_no_member_has_no_share_and_speaks_for_nobody() -> None:
    assert share_of(members(ROOM), MemberId("z"), 9) == 0
    assert not leads(members(ROOM), MemberId("z"))
    assert not leads((), MemberId("a"))


def test_room_is_shared_among_all_who_have_too_much() -> None:
    there = members(FULL, ROOM, FULL)
    for giver in ("a", "c"):
        assert [(x.member, x.room) for x in offers_to(there, MemberId(giver))] == [("b", 2)]


def test_nobody_offers_what_it_has_not() -> None:
    assert offers_to(members(FULL, FULL), MemberId("a")) == ()


# ---------------------------------------------------------------- who answers


async def test_a_cancel_is_for_the_owner_alone(seats: Sequence[Seat]) -> None:
    mine = job()
    await seats[1].store.commit([mine])
    cancel = e.JobCancelled(device=mine.device, id=mine.id)
    assert [await seat.deals_with(cancel, mine) for seat in seats] == [False, True]


async def test_the_oldest_member_answers_for_jobs_that_are_not_there(seats: Sequence[Seat]) -> None:
    cancel = e.JobCancelled(device=m.DeviceId("d1"), id=m.JobId("none"))
    assert [await seat.deals_with(cancel) for seat in seats] == [True, False]


async def test_a_finished_job_of_one_that_is_gone_is_retried_once(seats: Sequence[Seat]) -> None:
    first, second = seats
    dead = job(**ended(job()), dead=True)
    await second.store.commit([dead])
    await second.store.leave()
    await first.cluster.beat()
    request = m.AdminRequest(req="r", op=m.AdminOp.JOB_RETRY, job="K1")
    asked = e.AdminAsked(admin="op", request=request)
    assert await first.deals_with(asked, dead)
    assert await first.store.owners([dead.key]) == {dead.key: first.store.me}


async def test_all_say_which_workers_they_have(seats: Sequence[Seat]) -> None:
    request = m.AdminRequest(req="r", op=m.AdminOp.WORKERS_LIST)
    asked = e.AdminAsked(admin="op", request=request)
    assert [await seat.deals_with(asked) for seat in seats] == [True, True]


async def test_a_submission_whose_name_another_holds_is_left_to_it(seats: Sequence[Seat]) -> None:
    name = (m.DeviceId("d1"), m.JobId("1"))
    assert await seats[0].cluster.claim([name]) == {name}
    assert await seats[1].cluster.claim([name]) == frozenset()
    seats[0].cluster.saved([name])
    await seats[0].cluster.beat()
    assert await seats[1].cluster.claim([name]) == {name}


async def test_a_name_is_held_until_the_last_turn_that_claimed_it_is_saved(
    seats: Sequence[Seat],
) -> None:
    first, second = seats
    name = (m.DeviceId("d1"), m.JobId("1"))
    for _ in range(2):
        assert await first.cluster.claim([name]) == {name}
    first.cluster.saved([name])
    await first.cluster.beat()
    assert await second.cluster.claim([name]) == frozenset()
    first.cluster.saved([name])
    await first.cluster.beat()
    assert await second.cluster.claim([name]) == {name}


async def test_a_release_that_failed_is_made_up_for(
    seats: Sequence[Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = seats
    name = (m.DeviceId("d1"), m.JobId("1"))
    await first.cluster.claim([name])
    first.cluster.saved([name])

    async def fail(*_: object, **__: object) -> frozenset[tuple[m.DeviceId, m.JobId]]:
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(first.store, "claim", fail)
        with pytest.raises(StoreUnavailableError):
            await first.cluster.beat()
    await first.cluster.beat()
    assert await second.cluster.claim([name]) == {name}


# ---------------------------------------------------------------- the end of a member


async def test_who_fell_silent_is_told_so_and_its_jobs_are_taken(
    seats: Sequence[Seat], clock: Clock
) -> None:
    first, second = seats
    await second.store.commit([job()])
    for _ in range(3):
        clock.now_ms += 2_000
        await first.cluster.beat()
    taken = [
        one for event in first.told if isinstance(event, e.BoardsAcquired) for one in event.jobs
    ]
    assert [one.key for one in taken] == ["K1"]
    for late in (second.cluster.beat(), second.store.commit([job("K2")])):
        with pytest.raises(MemberFencedError):
            await late
    assert await first.store.get(m.JobKey("K2")) is None


async def test_who_is_cut_off_from_a_broker_that_others_have_leaves(
    seats: Sequence[Seat], clock: Clock
) -> None:
    first, second = seats
    second.lines.are_up = False
    await second.cluster.beat()
    for _ in range(3):
        clock.now_ms += 4_000
        await first.cluster.beat()
        await second.cluster.beat()
    assert not second.cluster.members[1].figures.linked
    clock.now_ms += 4_000
    await first.cluster.beat()
    with pytest.raises(MemberFencedError, match="broker"):
        await second.cluster.beat()
    await first.cluster.beat()
    assert [member.name for member in first.cluster.members] == ["a"]


async def test_a_broker_that_is_away_for_all_ends_nobody(
    seats: Sequence[Seat], clock: Clock
) -> None:
    for seat in seats:
        seat.lines.are_up = False
    for _ in range(10):
        clock.now_ms += 2_000
        for seat in seats:
            await seat.cluster.beat()
    assert [len(seat.cluster.members) for seat in seats] == [2, 2]
    # Nor does it when it is back, for one of them a moment sooner.
    first, second = seats
    first.lines.are_up = True
    await first.cluster.beat()
    await second.cluster.beat()
    clock.now_ms += 1_000
    second.lines.are_up = True
    await second.cluster.beat()
    assert second.cluster.members[1].figures.linked


# ---------------------------------------------------------------- what people see


def test_the_overview_adds_up_what_can_be_added() -> None:
    own = m.FleetSummary(
        at_ms=1, queued=2, busy=1, tok_s=1.5, finished={"ok": 3}, latency_ms=m.Quantiles(p99=9.0)
    )
    other = m.FleetSummary(
        at_ms=1,
        queued=5,
        busy=2,
        hot=1,
        tok_s=2.0,
        finished={"ok": 1, "failed": 1},
        latency_ms=m.Quantiles(p99=30.0),
    )
    whole = merged(own, [other])
    assert (whole.queued, whole.finished) == (7, {"ok": 4, "failed": 1})
    assert (whole.busy, whole.hot, whole.tok_s) == (3, 1, 3.5)
    assert whole.latency_ms.p99 == 30.0


@pytest.mark.parametrize("command", ["run", "check"])
def test_several_dispatchers_on_one_file_are_refused(tmp_path: Path, command: str) -> None:
    config = tmp_path / "d.toml"
    config.write_text('[cluster]\nname = "a"\n')
    words = [command, "--config", str(config), "--data", str(tmp_path)]
    said = CliRunner().invoke(main, [*words, "--broker", "mqtt://127.0.0.1:1"])
    assert said.exit_code in {Exit.USAGE, Exit.CANNOT_CONNECT}
    assert "store.url" in said.output + said.stderr
