"""Does to a test fleet what the faults say, and undoes it when their time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from fleet_cli.drill.faults import BROKER, DISPATCHER, Fault, FaultKind
from fleet_cli.drill.ledger import Ledger, wall_ms
from fleet_cli.drill.processes import DrillFleet

_PATIENCE_S: Final = 40.0
"""How long a fault waits for its target to be free before it is left out."""


class Strike(msgspec.Struct, kw_only=True):
    """A fault that was injected.

    Attributes:
        at_ms: Its moment, UTC epoch milliseconds.
        undone_at_ms: When it was undone; None while it holds.
    """

    fault: Fault
    at_ms: float
    undone_at_ms: float | None = None


class Injector:
    """Carries faults out, one after the other; what they hold may overlap.

    Args:
        schedule: What is to come.
        burst: Lets so many jobs be submitted at once.
        burst_jobs: How many, shortly before each fault.

    Attributes:
        strikes: What was done.
        skipped: Faults whose target was never free.
    """

    def __init__(
        self,
        fleet: DrillFleet,
        ledger: Ledger,
        schedule: Iterator[Fault],
        *,
        burst: Callable[[int], None],
        burst_jobs: int,
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._schedule = schedule
        self._burst = burst
        self._burst_jobs = burst_jobs
        self._next: Fault | None = None
        self._due_at_s = self._give_up_at_s = 0.0
        self._held: list[tuple[float, Strike]] = []
        self._last_outage_at_ms = 0.0
        self.strikes: list[Strike] = []
        self.skipped = 0

    def tick(self) -> bool:
        """Undo what is over, and strike if it is time; return whether there is more to come."""
        now_s = time.monotonic()
        self._undo(until_s=now_s)
        if self._next is None:
            self._next = next(self._schedule, None)
            if self._next is None:
                return bool(self._held)
            self._due_at_s = now_s + self._next.pause_s
            self._give_up_at_s = now_s + _PATIENCE_S
        if self._waits_for_jobs(self._next) and now_s < self._give_up_at_s:
            # Each shall hit a fleet at work: its pause begins when jobs flow.
            self._due_at_s = now_s + self._next.pause_s
            return True
        if now_s < self._due_at_s:
            return True
        if self._is_ready(self._next):
            fault, self._next = self._next, None
            self._strike(fault)
        elif now_s > self._due_at_s + _PATIENCE_S:
            self._next = None
            self.skipped += 1
        return True

    def heal(self) -> None:
        """Undo everything."""
        self._undo(until_s=float("inf"))

    def _is_ready(self, fault: Fault) -> bool:
        if any(strike.fault.target == fault.target for _, strike in self._held):
            return False
        if fault.kind.is_of_link:
            return True
        if not self._fleet.is_free(fault.target):
            return False
        # Nobody starts on a full disk; what is wanted here is one that fills at work.
        return fault.kind is not FaultKind.FULL_DISK or self._fleet.is_serving(fault.target)

    def _waits_for_jobs(self, fault: Fault) -> bool:
        if fault.is_hasty or not _stops_all(fault):
            return False
        return not self._ledger.flows_since(self._last_outage_at_ms)

    def _strike(self, fault: Fault) -> None:
        self._burst(self._burst_jobs)
        time.sleep(fault.jitter_s)
        strike = Strike(fault=fault, at_ms=wall_ms())
        try:
            self._begin(fault)
        except ProcessLookupError:
            self.skipped += 1  # it ended by itself a moment ago
            return
        if _stops_all(fault):
            self._last_outage_at_ms = strike.at_ms
        self.strikes.append(strike)
        self._held.append((time.monotonic() + fault.held_s, strike))

    def _undo(self, *, until_s: float) -> None:
        over = [one for one in self._held if one[0] <= until_s]
        self._held = [one for one in self._held if one[0] > until_s]
        for _, strike in over:
            self._end(strike.fault)
            strike.undone_at_ms = wall_ms()
            if strike.fault.kind is FaultKind.CLOCK_JUMP and _stops_all(strike.fault):
                self._last_outage_at_ms = strike.undone_at_ms

    def _begin(self, fault: Fault) -> None:
        fleet, target = self._fleet, fault.target
        match fault.kind:
            case FaultKind.CUT_LINK:
                fleet.links.cut(target)
            case FaultKind.STALL_LINK:
                fleet.links.stall(target)
            case FaultKind.STALL_PROCESS:
                fleet.stall(target)
            case FaultKind.FULL_DISK:
                fleet.fill_disk(target)
            case FaultKind.STOP_DISPATCHER | FaultKind.STOP_WORKER:
                fleet.stop_one(target)
            case FaultKind.CLOCK_JUMP:
                fleet.kill(target)
                fleet.revive(target, shift_s=fault.shift_s)
            case _:
                fleet.kill(target)

    def _end(self, fault: Fault) -> None:
        fleet, target = self._fleet, fault.target
        match fault.kind:
            case FaultKind.CUT_LINK | FaultKind.STALL_LINK:
                fleet.links.restore(target)
            case FaultKind.STALL_PROCESS:
                fleet.resume(target)
            case FaultKind.FULL_DISK:
                fleet.free_disk(target)
            case FaultKind.STOP_DISPATCHER | FaultKind.STOP_WORKER:
                pass
            case FaultKind.CLOCK_JUMP:
                if fleet.is_free(target):
                    fleet.kill(target)
                fleet.revive(target)
            case _:
                if fault.kind is FaultKind.WIPE_BROKER:
                    fleet.forget()
                fleet.revive(target)


def _stops_all(fault: Fault) -> bool:
    """Tell whether no job can flow while a fault holds."""
    return fault.target in {DISPATCHER, BROKER}
