"""One modelled board: jobs that share its processor, a link, a spool that outlives the power."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

import msgspec

from cloud_dispatcher.core import events as e
from cloud_dispatcher.simulation.kinds import BoardKind, batch_gain
from fleet_protocol import messages as m

MODEL: Final = m.ModelInfo(name="simulated", version="1", context_tokens=4_096)
_HEARTBEATS_KEPT: Final = 64


class Row(msgspec.Struct):
    """An attempt on a board.

    Attributes:
        tokens: Work in tokens written; reading the prompt counts as so many.
        answer: What will be said when it is done.
        ends: Reading of the board's meter at which it is done; None: it waits for a slot.
        heard_ms: When the board last said anything of it; None: never.
    """

    key: m.JobKey
    attempt: int
    tokens: float
    answer: m.LocalAnswer
    ends: float | None = None
    heard_ms: int | None = None


class Claim(msgspec.Struct, frozen=True):
    """What a board says of itself, which need not be so.

    Attributes:
        speed: Declared speed over the true one.
        stale_ms: Its heartbeats are so old.
    """

    speed: float = 1.0
    stale_ms: int = 0


class Board:
    """A board as it really is.

    Rows in slots share the processor evenly. A meter counts the tokens that a row has got since the
    beginning of time; a row is done when the meter has moved on by its work. So a change of speed
    or company changes one rate, not every row.

    Attributes:
        is_up: It has power.
        is_linked: It is heard, and hears.
        is_failing: It can do nothing with a job that it is given.
        boot: Number of this run.
        speed: Share of its true speed that it works at.
        plan: Serial of its last change: whatever was planned for an earlier one is void.
        busy_ms: Slots in use, summed over time.
        coming: Jobs that are on their way to it.
        inbox: What waits at the broker for it: (worthless after, what to do).
        outbox: What it could not say yet.
    """

    def __init__(self, worker: m.WorkerId, kind: BoardKind, claim: Claim) -> None:
        self.id = worker
        self.kind = kind
        self.claim = claim
        self.is_up = self.is_linked = True
        self.is_failing = False
        self.boot = 1
        self.speed = 1.0
        self.plan = 0
        self.busy_ms = 0.0
        self.rows: dict[m.JobKey, Row] = {}
        self.coming: set[m.JobKey] = set()
        self.inbox: list[tuple[int, Callable[[], None]]] = []
        self.outbox: list[e.AnyEvent] = []
        self._running: list[tuple[float, m.JobKey]] = []
        self._waiting: deque[m.JobKey] = deque()
        self._meter = 0.0
        self._meter_at_ms = 0.0
        self._states: deque[tuple[int, m.WorkerState]] = deque(maxlen=_HEARTBEATS_KEPT)
        self._written = 0.0

    @property
    def is_reachable(self) -> bool:
        """Whether it hears, and is heard."""
        return self.is_up and self.is_linked

    @property
    def name_of_boot(self) -> str:
        """The boot, as it says it."""
        return f"boot{self.boot}"

    @property
    def info(self) -> m.WorkerInfo:
        """What it says that it is."""
        kind, speed = self.kind, self.claim.speed
        benchmark = m.Benchmark(
            decode_tok_s=kind.decode_tok_s * speed,
            prefill_tok_s=kind.prefill_tok_s * speed,
            bandwidth_mbps=kind.bandwidth_mbps,
        )
        return m.WorkerInfo(
            boot=self.name_of_boot,
            slots=kind.slots,
            prefetch=kind.prefetch,
            models=(MODEL,),
            benchmark=benchmark,
        )

    @property
    def held(self) -> m.HeldJobs:
        """What it works on, and what it has answered without being heard."""
        running = tuple(m.AttemptRef(job=r.key, attempt=r.attempt) for r in self.rows.values())
        finished = tuple(
            m.AttemptRef(job=unsaid.job, attempt=unsaid.done.attempt)
            for unsaid in self.outbox
            if isinstance(unsaid, e.DoneReceived)
        )
        return m.HeldJobs(boot=self.name_of_boot, running=running, finished=finished)

    def remaining_tokens(self, now_ms: int) -> list[float]:
        """Return the work left of each attempt it holds, those that wait included."""
        self._advance(now_ms)
        meter = self._meter
        return [r.tokens if r.ends is None else r.ends - meter for r in self.rows.values()]

    def rate(self, rows: int) -> float:
        """Return the tokens per millisecond that each of so many rows gets now."""
        if not (rows and self.is_up):
            return 0.0
        return self.kind.decode_tok_s * self.speed * batch_gain(rows) / rows / 1_000

    def take(self, row: Row, now_ms: int) -> None:
        """Begin an attempt, or let it wait for a slot; a later one of the same job replaces it."""
        self._advance(now_ms)
        known = self.rows.get(row.key)
        if known is not None:
            if known.attempt >= row.attempt:
                return
            self._remove(known)
        self.rows[row.key] = row
        self._waiting.append(row.key)
        self._fill()

    def cancel(self, key: m.JobKey, attempt: int, now_ms: int) -> None:
        """Stop an attempt. Unknown ones are ignored."""
        row = self.rows.get(key)
        if row is not None and row.attempt <= attempt:
            self._advance(now_ms)
            self._remove(row)
            self._fill()

    def finish(self, now_ms: int) -> list[Row]:
        """Return the attempts that are done by now, and forget them."""
        self._advance(now_ms)
        done: list[Row] = []
        while self._running and self._running[0][0] <= self._meter + 1e-6:
            row = self.rows.pop(heappop(self._running)[1])
            done.append(row)
        if done:
            self._fill()
        return done

    def done_at_ms(self) -> int | None:
        """Return when the next attempt is done if nothing changes; None: none ever."""
        rate = self.rate(len(self._running))
        if not rate:
            return None
        left_ms = (self._running[0][0] - self._meter) / rate
        return int(self._meter_at_ms + max(left_ms, 0.0)) + 1

    def set_speed(self, speed: float, now_ms: int) -> None:
        """Work at this share of the true speed from now on."""
        self._advance(now_ms)
        self.speed = speed
        self.plan += 1

    def lose_power(self, now_ms: int) -> None:
        """Stop; what was begun must begin anew."""
        self._advance(now_ms)
        self.is_up = False
        for row in self.rows.values():
            row.ends = row.heard_ms = None
        self._running.clear()
        self._waiting = deque(self.rows)
        self.plan += 1

    def get_power(self, now_ms: int) -> None:
        """Boot, and begin what the spool holds."""
        self._advance(now_ms)
        self.is_up = True
        self.boot += 1
        self._states.clear()
        self._fill()

    def heartbeat(self, now_ms: int) -> m.WorkerState:
        """Return what it says of itself now, which may be long past."""
        self._advance(now_ms)
        running = len(self._running)
        state = m.WorkerState(
            ts=now_ms,
            seq=len(self._states),
            status=m.Activity.BUSY if running else m.Activity.IDLE,
            cpu_pct=100.0 if running else 0.0,
            mem_pct=0.0,
            inflight=len(self.rows),
            tok_s=self.rate(running) * running * 1_000,
            throttled=self.speed < 1.0,
        )
        self._states.append((now_ms, state))
        old_ms = now_ms - self.claim.stale_ms
        while len(self._states) > 1 and self._states[1][0] <= old_ms:
            self._states.popleft()
        return self._states[0][1] if self.claim.stale_ms else state

    def _advance(self, now_ms: int) -> None:
        span_ms = now_ms - self._meter_at_ms
        running = len(self._running)
        if running and span_ms > 0:
            self._meter += self.rate(running) * span_ms
            self.busy_ms += running * span_ms
        self._meter_at_ms = now_ms

    def _fill(self) -> None:
        self.plan += 1
        while self.is_up and self._waiting and len(self._running) < self.kind.slots:
            row = self.rows[self._waiting.popleft()]
            row.ends = self._meter + row.tokens
            heappush(self._running, (row.ends, row.key))

    def _remove(self, row: Row) -> None:
        del self.rows[row.key]
        if row.ends is None:
            self._waiting.remove(row.key)
        else:
            self._running.remove((row.ends, row.key))
            heapify(self._running)
