"""When a fault strikes, and that each is undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet_cli.drill.faults import Fault, FaultKind
from fleet_cli.drill.injection import Injector
from fleet_cli.drill.ledger import Ledger
from fleet_protocol.messages import AnsweredBy, JobResult, JobStatus


class Orders:
    """Stands where the fleet and its links do, and writes down what it is told to do."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.is_busy = False
        self.links = self

    def is_free(self, name: str) -> bool:
        return not self.is_busy or name == "other"

    def is_serving(self, name: str) -> bool:
        return self.is_free(name)

    def forget(self) -> None:
        self.given.append("forget")

    def __getattr__(self, order: str) -> object:
        def give(name: str, **_how: object) -> None:
            self.given.append(f"{order} {name}")

        return give


def fault(kind: FaultKind, target: str, *, held_s: float = 0.0, is_hasty: bool = False) -> Fault:
    return Fault(
        kind=kind, target=target, pause_s=0.0, jitter_s=0.0, held_s=held_s, is_hasty=is_hasty
    )


class Desk:
    """An injector with a fleet that only listens."""

    def __init__(self, *faults: Fault) -> None:
        self.ledger = Ledger()
        self.orders = Orders()
        self.bursts: list[int] = []
        schedule: Iterator[Fault] = iter(faults)
        self.injector = Injector(
            self.orders,  # type: ignore[arg-type]
            self.ledger,
            schedule,
            burst=self.bursts.append,
            burst_jobs=7,
        )

    def answer_a_job(self) -> None:
        name = str(self.ledger.count)
        self.ledger.submitted("d1", name, text=None)
        done = JobResult(id=name, status=JobStatus.OK, answered_by=AnsweredBy.EDGE)
        self.ledger.heard("d1", done)

    def tick(self, count: int = 4) -> list[str]:
        for _ in range(count):
            self.injector.tick()
        return self.orders.given


UNDONE = {
    FaultKind.KILL_DISPATCHER: ["kill x", "revive x"],
    FaultKind.KILL_BROKER: ["kill x", "revive x"],
    FaultKind.KILL_WORKER: ["kill x", "revive x"],
    FaultKind.KILL_CLOUD: ["kill x", "revive x"],
    FaultKind.WIPE_BROKER: ["kill x", "forget", "revive x"],
    FaultKind.STOP_DISPATCHER: ["stop_one x"],
    FaultKind.STOP_WORKER: ["stop_one x"],
    FaultKind.STALL_PROCESS: ["stall x", "resume x"],
    FaultKind.CUT_LINK: ["cut x", "restore x"],
    FaultKind.STALL_LINK: ["stall x", "restore x"],
    FaultKind.FULL_DISK: ["fill_disk x", "free_disk x"],
    FaultKind.CLOCK_JUMP: ["kill x", "revive x", "kill x", "revive x"],
}


@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_fault_is_done_behind_a_burst_of_jobs_and_undone(kind: FaultKind) -> None:
    desk = Desk(fault(kind, "x"))
    assert desk.tick() == UNDONE[kind]
    assert desk.bursts == [7]
    assert desk.injector.strikes[0].undone_at_ms is not None


def test_what_still_holds_at_the_end_is_undone() -> None:
    desk = Desk(fault(FaultKind.CUT_LINK, "d1", held_s=600.0))
    assert desk.tick() == ["cut d1"]
    desk.injector.heal()
    assert desk.orders.given == ["cut d1", "restore d1"]


def test_a_fault_waits_for_a_target_that_is_away() -> None:
    desk = Desk(fault(FaultKind.KILL_WORKER, "w1"))
    desk.orders.is_busy = True
    assert desk.tick() == []
    desk.orders.is_busy = False
    assert desk.tick() == ["kill w1", "revive w1"]


def test_after_the_dispatcher_was_struck_it_is_left_alone_until_jobs_flow() -> None:
    kill = fault(FaultKind.KILL_DISPATCHER, "dispatcher")
    desk = Desk(kill, kill)
    desk.answer_a_job()
    assert desk.tick() == ["kill dispatcher", "revive dispatcher"]
    desk.answer_a_job()
    assert desk.tick() == ["kill dispatcher", "revive dispatcher"] * 2


def test_a_hasty_fault_strikes_one_that_is_recovering() -> None:
    kill = fault(FaultKind.KILL_DISPATCHER, "dispatcher", is_hasty=True)
    assert Desk(kill, kill).tick(6) == ["kill dispatcher", "revive dispatcher"] * 2


def test_a_drill_is_over_when_all_faults_are_dealt_and_undone() -> None:
    desk = Desk(fault(FaultKind.STALL_PROCESS, "w1"))
    assert desk.injector.tick()
    desk.tick()
    assert not desk.injector.tick()
