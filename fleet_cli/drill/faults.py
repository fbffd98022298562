"""Which faults there are, and in which order a seed deals them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

DISPATCHER = "dispatcher"
BROKER = "broker"
CLOUD = "cloud"
_JUMP_S = 3_600.0


class FaultKind(StrEnum):
    """What can be done to a fleet."""

    KILL_DISPATCHER = "kill-dispatcher"
    KILL_BROKER = "kill-broker"
    KILL_WORKER = "kill-worker"
    KILL_CLOUD = "kill-cloud"
    WIPE_BROKER = "wipe-broker"
    STOP_DISPATCHER = "stop-dispatcher"
    STOP_WORKER = "stop-worker"
    STALL_PROCESS = "stall-process"
    CUT_LINK = "cut-link"
    STALL_LINK = "stall-link"
    FULL_DISK = "full-disk"
    CLOCK_JUMP = "clock-jump"

    @property
    def is_of_link(self) -> bool:
        """Whether it strikes a link, and not a process."""
        return self in {FaultKind.CUT_LINK, FaultKind.STALL_LINK}


MEANINGS = {
    FaultKind.KILL_DISPATCHER: "kill -9 the dispatcher, start it again",
    FaultKind.KILL_BROKER: "kill -9 the broker; it comes back with what it kept, if it keeps any",
    FaultKind.KILL_WORKER: "kill -9 a worker, start it again",
    FaultKind.KILL_CLOUD: "kill -9 the simulated provider, start it again",
    FaultKind.WIPE_BROKER: "kill -9 the broker and remove what it has kept",
    FaultKind.STOP_DISPATCHER: "ask the dispatcher to end (SIGTERM), start it again",
    FaultKind.STOP_WORKER: "ask a worker to end, which drains it; start it again",
    FaultKind.STALL_PROCESS: "stop dispatcher, broker or a worker in mid-work, let it go on later",
    FaultKind.CUT_LINK: "reset the connections of dispatcher, worker or device, refuse new ones",
    FaultKind.STALL_LINK: "let nothing through, without closing: a half-open connection",
    FaultKind.FULL_DISK: "let no file of dispatcher or a worker grow: its commits fail",
    FaultKind.CLOCK_JUMP: "restart dispatcher or a worker an hour off, then right again",
}
"""For people, by kind."""


class Range(msgspec.Struct, frozen=True):
    """Seconds from .. to, evenly spread."""

    least_s: float
    most_s: float

    def draw(self, rng: random.Random) -> float:
        """Return a span within."""
        return round(rng.uniform(self.least_s, self.most_s), 3)


_HELD = {
    FaultKind.KILL_DISPATCHER: Range(0.0, 2.0),
    FaultKind.KILL_BROKER: Range(0.0, 2.0),
    FaultKind.KILL_WORKER: Range(0.0, 5.0),
    FaultKind.KILL_CLOUD: Range(0.0, 5.0),
    FaultKind.WIPE_BROKER: Range(0.0, 2.0),
    FaultKind.STOP_DISPATCHER: Range(0.0, 0.0),
    FaultKind.STOP_WORKER: Range(0.0, 0.0),
    FaultKind.STALL_PROCESS: Range(0.5, 8.0),
    FaultKind.CUT_LINK: Range(0.2, 8.0),
    FaultKind.STALL_LINK: Range(0.5, 8.0),
    FaultKind.FULL_DISK: Range(0.5, 6.0),
    FaultKind.CLOCK_JUMP: Range(2.0, 8.0),
}
_LONG_STALL = Range(22.0, 36.0)
"""Of a worker, now and then: beyond its silence (20 s) and its leases (30 s)."""
_LONG_SHARE = 0.25
_HASTY_SHARE = 0.15
_JITTER = Range(0.0, 0.08)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One misfortune.

    Attributes:
        target: A process, or whose link it is: `dispatcher`, `broker`, `cloud`, `w1`, `d1`, ...
        pause_s: From the fault before it (its beginning) to this one, at least.
        jitter_s: From the burst of jobs that goes before it to its beginning.
        held_s: From its beginning until it is undone.
        is_hasty: Strikes dispatcher or broker even where jobs do not flow again yet.
        shift_s: Of a clock that jumps.
    """

    kind: FaultKind
    target: str
    pause_s: float
    jitter_s: float
    held_s: float
    is_hasty: bool = False
    shift_s: float = 0.0


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The names of what can be struck."""

    workers: tuple[str, ...]
    devices: tuple[str, ...]

    def of(self, kind: FaultKind) -> tuple[str, ...]:
        """Return what a kind of fault can strike."""
        by_kind = {
            FaultKind.KILL_BROKER: (BROKER,),
            FaultKind.WIPE_BROKER: (BROKER,),
            FaultKind.KILL_DISPATCHER: (DISPATCHER,),
            FaultKind.STOP_DISPATCHER: (DISPATCHER,),
            FaultKind.KILL_CLOUD: (CLOUD,),
            FaultKind.KILL_WORKER: self.workers,
            FaultKind.STOP_WORKER: self.workers,
            FaultKind.STALL_PROCESS: (DISPATCHER, BROKER, *self.workers),
            FaultKind.CUT_LINK: (DISPATCHER, *self.workers, *self.devices),
            FaultKind.STALL_LINK: (DISPATCHER, *self.workers, *self.devices),
        }
        return by_kind.get(kind, (DISPATCHER, *self.workers))


def deal(
    kinds: Sequence[FaultKind], parts: Parts, *, every_s: float, rng: random.Random
) -> Iterator[Fault]:
    """Yield faults without end: each kind once, in any order, then each once again, ..."""
    while True:
        for kind in rng.sample(kinds, len(kinds)):
            target = rng.choice(parts.of(kind))
            pause_s = Range(0.5 * every_s, 1.5 * every_s).draw(rng)
            held = _HELD[kind]
            may_be_long = kind is FaultKind.STALL_PROCESS and target in parts.workers
            if may_be_long and rng.random() < _LONG_SHARE:
                held = _LONG_STALL
            yield Fault(
                kind=kind,
                target=target,
                pause_s=pause_s,
                jitter_s=_JITTER.draw(rng),
                held_s=held.draw(rng),
                is_hasty=rng.random() < _HASTY_SHARE,
                shift_s=rng.choice((-1, 1)) * _JUMP_S if kind is FaultKind.CLOCK_JUMP else 0.0,
            )
