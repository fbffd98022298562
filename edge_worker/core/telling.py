"""What the worker says to the fleet, as `Send` commands; nothing while the link is down.

What is not said then is not lost: when the link is back, `held` and every outcome are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from edge_worker.core import commands as c
from edge_worker.core import outcomes
from edge_worker.core.attempt import HeldJob, Phase
from edge_worker.core.health import Heat, HostReading
from fleet_protocol import messages as m
from fleet_protocol import topics

REPEAT_MS: Final = 15_000
REPEAT_MOST_MS: Final = 120_000


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How the worker is, apart from its host.

    Attributes:
        tok_s: Tokens generated per second since the last heartbeat.
    """

    running: int
    is_hot: bool
    tok_s: float


class Teller:
    """Turns what is to be said into commands, which gather in `out`.

    Attributes:
        joins_answers: The dispatcher takes several in one message.
    """

    def __init__(self, *, worker: m.WorkerId, info: m.WorkerInfo, started_at_ms: int) -> None:
        self.out: list[c.AnyCommand] = []
        self.info = info
        self.is_linked = False
        self.joins_answers = False
        self._worker = worker
        self._started_at_ms = started_at_ms
        self._seq = 0

    def tell(self, held: HeldJob, now_ms: int) -> None:
        """Say where an attempt stands: started, or its outcome."""
        held.heard_at_ms = now_ms
        held.is_told = True
        outcome = held.spooled.outcome
        if outcome is None:
            self._send(topics.STARTED, m.JobStarted(attempt=held.attempt), held.job)
            return
        wait_ms = REPEAT_MS
        if held.repeats:
            wait_ms = min(REPEAT_MS << min(held.repeats, 8), REPEAT_MOST_MS)
        held.repeat_at_ms = now_ms + wait_ms
        if not self.is_linked:
            return
        # Told again it travels alone: should a message of many be too much for anybody on the way.
        joint = self.joins_answers and not held.repeats and isinstance(outcome, m.JobDone)
        ids = (self._worker, held.job)
        self.out.append(c.Send(outcomes.channel_of(outcome), ids, outcome, joint=joint))

    def tell_tokens(self, held: HeldJob, now_ms: int) -> None:
        """Send the text that has not been sent, if the job wants to see it grow."""
        if not held.spooled.assignment.stream or not self.is_linked:
            return
        text = "".join(held.parts[held.told_parts :])
        held.told_parts = len(held.parts)
        if not text:
            return
        chunk = m.WorkerTokenChunk(attempt=held.attempt, i=held.chunk, t=text)
        self._send(topics.WORKER_TOKENS, chunk, held.job)
        held.chunk += 1
        held.heard_at_ms = now_ms

    def tell_progress(self, held: HeldJob, now_ms: int) -> None:
        """Renew the lease."""
        progress = m.JobProgress(attempt=held.attempt, tokens=held.tokens)
        self._send(topics.PROGRESS, progress, held.job)
        held.heard_at_ms = now_ms

    def refuse(self, assignment: m.Assignment, *, code: str, message: str) -> None:
        """Hand an assignment back that was never accepted: nothing of it is kept."""
        refusal = m.JobFailed(attempt=assignment.attempt, code=code, message=message)
        self._send(topics.FAILED, refusal, assignment.job)

    def tell_presence(self, *, is_ready: bool, unfit: m.Unfit | None = None) -> None:
        """Say whether this worker takes jobs, and why its host is not fit for any."""
        status = m.PresenceStatus.ONLINE if is_ready else m.PresenceStatus.DRAINING
        presence = m.Presence(
            status=status, boot=self.info.boot, since_at_ms=self._started_at_ms, reason=unfit
        )
        self._send(topics.PRESENCE, presence)

    def tell_info(self) -> None:
        """Say what this worker is."""
        self._send(topics.INFO, self.info)

    def tell_slots(self, slots: int) -> None:
        """Say that this worker works on so many jobs at once from now on."""
        self.info = msgspec.structs.replace(self.info, slots=slots)
        self.tell_info()

    def tell_heat(self, before: Heat, heat: Heat, *, temp_c: float | None) -> None:
        """Have the engine and the fleet know how many slots are left, where that changed."""
        if heat.open_slots != before.open_slots:
            self.out.append(c.LimitSlots(heat.open_slots, temp_c))
        if heat.slots != before.slots:
            self.tell_slots(heat.slots)

    def tell_speed(self, speed: m.Benchmark) -> None:
        """Say how fast it is; what is known of the line stays."""
        known = self.info.benchmark
        if known is not None:
            speed = msgspec.structs.replace(speed, bandwidth_mbps=known.bandwidth_mbps)
        self.info = msgspec.structs.replace(self.info, benchmark=speed)
        self.tell_info()

    def tell_bandwidth(self, mbps: float) -> None:
        """Say how fast the line is; nothing without a benchmark that it could be part of."""
        if self.info.benchmark is not None:
            benchmark = msgspec.structs.replace(self.info.benchmark, bandwidth_mbps=mbps)
            self.info = msgspec.structs.replace(self.info, benchmark=benchmark)
            self.tell_info()

    def tell_held(self, jobs: Iterable[HeldJob], now_ms: int) -> None:
        """Say all that is held, and every outcome again."""
        running: list[HeldJob] = []
        finished: list[HeldJob] = []
        for held in jobs:
            (finished if held.phase is Phase.FINISHED else running).append(held)
        message = m.HeldJobs(
            boot=self.info.boot,
            running=tuple(held.ref for held in running),
            finished=tuple(held.ref for held in finished),
        )
        self._send(topics.HELD, message)
        for held in running:
            held.heard_at_ms = now_ms
            held.is_told = True
        for held in finished:
            self.tell(held, now_ms)

    def tell_state(self, reading: HostReading, standing: Standing, now_ms: int) -> None:
        """Send the heartbeat."""
        busy = m.Activity.BUSY if standing.running else m.Activity.IDLE
        state = m.WorkerState(
            ts=now_ms,
            seq=self._seq,
            status=m.Activity.HOT if standing.is_hot else busy,
            cpu_pct=reading.cpu_pct,
            mem_pct=reading.mem_pct,
            temp_c=reading.temp_c,
            throttled=reading.throttled,
            inflight=standing.running,
            tok_s=round(standing.tok_s, 1),
        )
        self._send(topics.STATE, state)
        self._seq += 1

    def _send(self, channel: topics.Channel, message: m.Message, *ids: str) -> None:
        if self.is_linked:
            self.out.append(c.Send(channel, (self._worker, *ids), message))
