"""One drill: a test fleet under load, faults, a while to settle, an audit."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from fleet_cli.drill.audit import CLOCKS_AGREE_MS, Audit, audit
from fleet_cli.drill.devices import Errands, Load
from fleet_cli.drill.faults import FaultKind, Parts, deal
from fleet_cli.drill.injection import Injector, Strike
from fleet_cli.drill.ledger import Effect, Ledger, wall_ms
from fleet_cli.drill.processes import DrillFleet, DrillPlan, UnaskedEnd
from fleet_cli.drill.stored import read_store
from fleet_cli.local_fleet import StartError

_TICK_S: Final = 0.02
_FIRST_S: Final = 60.0
_JUMPED_AGREE_MS: Final = 3_000.0
"""The dispatcher follows a clock that jumped at a tenth of the speed of time: so far, at most."""


class DrillSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to do to the fleet, and for how long.

    Attributes:
        faults: Kinds, each as often as the others.
        count: Faults after which it ends; None: only the time ends it.
        every_s: Between two faults, on average; faults wait for their targets on top.
        jobs_per_s: All devices together.
        burst_jobs: Submitted at once shortly before each fault.
        settle_s: Longest wait for one more result, once nothing disturbs the fleet any more.
    """

    seed: int
    faults: tuple[FaultKind, ...]
    duration_s: float = 60.0
    count: int | None = None
    every_s: float = 6.0
    jobs_per_s: float = 20.0
    burst_jobs: int = 40
    settle_s: float = 150.0


class FaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one fault meant.

    Attributes:
        at_s: From the beginning of the drill.
        held_s: From its beginning until it was undone.
        flowed_s: Until the first result of a job that was submitted after it; None: never.
        open_jobs: Jobs whose devices waited at that moment.
        cleared_s: Until the last of these had its result; None: not all had.
    """

    at_s: float
    fault: FaultKind
    target: str
    held_s: float
    flowed_s: float | None
    open_jobs: int
    cleared_s: float | None


class DrillReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill found.

    Attributes:
        took_s: From the first job to the last result.
        settled_s: Of these, after the last fault was undone.
        kills: Running processes that were killed, by their kind.
        skipped: Faults left out: their target was never free.
        ended: Processes that ended though nobody asked them to.
    """

    seed: int
    broker: str
    keeps: bool
    engine: str
    took_s: float
    settled_s: float
    faults: tuple[FaultReport, ...]
    kills: dict[str, int]
    skipped: int
    ended: tuple[UnaskedEnd, ...]
    audit: Audit


class Drill:
    """Runs once.

    Args:
        folder: Empty; all that the fleet writes.
        tell: Takes each fault's report as soon as jobs flow again after it.
        stop: Set it to end the faults early; what is open is settled and audited all the same.
    """

    def __init__(
        self,
        folder: Path,
        plan: DrillPlan,
        settings: DrillSettings,
        *,
        tell: Callable[[FaultReport], None],
        stop: threading.Event,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._settings = settings
        self._tell = tell
        self._stop = stop
        self._ledger = Ledger()
        self._told = 0
        self._began_at_ms = 0.0

    def run(self) -> DrillReport:
        """Do everything.

        Raises:
            StartError: The fleet does not come up.
            StoreUnreadableError: The dispatcher's file is damaged.
        """
        with DrillFleet(self._folder, self._plan) as fleet:
            ports = {name: fleet.links.port(name) for name in self._plan.devices}
            with self._load(ports) as load:
                self._begin(fleet)
                injector = self._injector(fleet, load)
                self._disturb(fleet, injector, load)
                healed_at_s = time.monotonic()
                load.pause()
                self._settle(fleet, injector.strikes)
                settled_s = time.monotonic() - healed_at_s
                took_s = (wall_ms() - self._began_at_ms) / 1_000
            fleet.stop()
            stored = read_store(fleet.store)
        return DrillReport(
            seed=self._settings.seed,
            broker=str(self._plan.kind),
            keeps=self._plan.keeps,
            engine=self._plan.engine,
            took_s=round(took_s, 1),
            settled_s=round(settled_s, 1),
            faults=tuple(self._report(strike) for strike in injector.strikes),
            kills=fleet.kills,
            skipped=injector.skipped,
            ended=tuple(fleet.ended),
            audit=audit(self._ledger.records(), stored, clocks_agree_ms=self._clocks_agree_ms),
        )

    @property
    def _clocks_agree_ms(self) -> float:
        jumps = FaultKind.CLOCK_JUMP in self._settings.faults
        return _JUMPED_AGREE_MS if jumps else CLOCKS_AGREE_MS

    def _load(self, ports: dict[str, int]) -> Load:
        echoes = self._plan.engine == "echo"
        return Load(
            ports,
            self._ledger,
            per_s=self._settings.jobs_per_s,
            errands=Errands(self._rng("errands"), echoes=echoes),
            rng=self._rng("load"),
        )

    def _injector(self, fleet: DrillFleet, load: Load) -> Injector:
        parts = Parts(workers=self._plan.workers, devices=self._plan.devices)
        every_s = self._settings.every_s
        schedule = deal(self._settings.faults, parts, every_s=every_s, rng=self._rng("faults"))
        return Injector(
            fleet,
            self._ledger,
            islice(schedule, self._settings.count),
            burst=load.burst,
            burst_jobs=self._settings.burst_jobs,
        )

    def _rng(self, purpose: str) -> random.Random:
        """Return randomness of its own for each purpose: one more draw here moves nothing there."""
        return random.Random(f"{self._settings.seed}/{purpose}")  # noqa: S311 - to be repeated

    def _begin(self, fleet: DrillFleet) -> None:
        """Wait for the first result: faults shall meet a fleet at work."""
        self._began_at_ms = wall_ms()
        give_up_at_s = time.monotonic() + _FIRST_S
        while not self._ledger.flows_since(0.0):
            if time.monotonic() > give_up_at_s:
                raise StartError(
                    f"no job was answered within {_FIRST_S:g} s, before any fault",
                    hint=f"read the logs in {self._folder}",
                )
            fleet.tick()
            time.sleep(_TICK_S)

    def _disturb(self, fleet: DrillFleet, injector: Injector, load: Load) -> None:
        end_at_s = time.monotonic() + self._settings.duration_s
        while time.monotonic() < end_at_s and not self._stop.wait(_TICK_S):
            if not injector.tick():
                break
            fleet.tick()
            load.check()
            self._tell_news(injector.strikes)
        injector.heal()

    def _settle(self, fleet: DrillFleet, strikes: Sequence[Strike]) -> None:
        open_jobs, give_up_at_s = 0, 0.0
        while self._ledger.open_jobs:
            if self._ledger.open_jobs != open_jobs:
                open_jobs = self._ledger.open_jobs
                give_up_at_s = time.monotonic() + self._settings.settle_s
            elif time.monotonic() > give_up_at_s:
                break
            fleet.tick()
            self._tell_news(strikes)
            time.sleep(_TICK_S)
        self._tell_news(strikes, is_last=True)

    def _tell_news(self, strikes: Sequence[Strike], *, is_last: bool = False) -> None:
        """Tell of each fault, in order, once it is undone and jobs flow."""
        while self._told < len(strikes):
            strike = strikes[self._told]
            flows = self._ledger.flows_since(strike.at_ms) and strike.undone_at_ms is not None
            if not (flows or is_last):
                return
            self._told += 1
            self._tell(self._report(strike))

    def _report(self, strike: Strike) -> FaultReport:
        effect: Effect = self._ledger.effect(strike.at_ms)
        undone_at_ms = strike.undone_at_ms or wall_ms()
        return FaultReport(
            at_s=round((strike.at_ms - self._began_at_ms) / 1_000, 2),
            fault=strike.fault.kind,
            target=strike.fault.target,
            held_s=round((undone_at_ms - strike.at_ms) / 1_000, 2),
            flowed_s=_rounded(effect.flowed_s),
            open_jobs=effect.open_jobs,
            cleared_s=_rounded(effect.cleared_s),
        )


def _rounded(span_s: float | None) -> float | None:
    return None if span_s is None else round(span_s, 3)
