"""A whole fleet in virtual time around the real engine: boards, heartbeats, deaths, a broker."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

import msgspec

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.scheduler import Policy
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m

STATE = m.WorkerState(ts=0, seq=0, status=m.Activity.IDLE, cpu_pct=0, mem_pct=0, inflight=0)
HEARTBEAT_MS = 5_000
RENEW_MS = 8_000
SPEEDS_TOK_S = (87.0, 40.0, 20.0, 8.0)
"""A mixed fleet: a fast mini PC, two generations of Pi, a very slow board."""


class Board:
    """A worker with one slot and a little prefetch; it answers in order of arrival."""

    def __init__(self, number: int) -> None:
        self.id = m.WorkerId(f"board-{number:03}")
        self.tok_s = SPEEDS_TOK_S[number % len(SPEEDS_TOK_S)]
        self.is_alive = True
        self.boot = 1
        self.free_at_ms = 0


class Run(msgspec.Struct):
    """What came of a run."""

    latencies_ms: list[int]
    results: dict[m.JobKey, list[m.JobResult]]
    turns: int

    def quantile_ms(self, share: float) -> int:
        """Return a latency quantile, e.g. 0.99."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class VirtualFleet:
    """Events in virtual time, the engine's commands carried out at once."""

    def __init__(self, *, boards: int, policy: Policy, seed: int = 1) -> None:
        self.now_ms = 0
        self.engine = Engine(EngineSettings(), "sim", policy=policy)
        self.run = Run(latencies_ms=[], results={}, turns=0)
        self._random = Random(seed)
        self._boards = {board.id: board for board in map(Board, range(boards))}
        self._agenda: list[tuple[int, int, e.AnyEvent | m.WorkerId]] = []
        self._serial = 0
        self._submitted = 0
        for board in self._boards.values():
            self._join(board)

    def submit(self, *, jobs: int, jobs_per_s: float, max_tokens: int = 64) -> None:
        """Put submissions at random moments (Poisson) on the agenda."""
        at_ms = 0.0
        self._submitted += jobs
        submit = m.JobSubmit(
            prompt="what is the state of the pump?", max_tokens=max_tokens, cache=m.Caching.OFF
        )
        for number in range(jobs):
            at_ms += self._random.expovariate(jobs_per_s) * 1_000
            submitted = e.JobSubmitted(
                key=m.JobKey(f"K{number:06}"),
                device=m.DeviceId("d"),
                id=m.JobId(str(number)),
                submit=submit,
                reply=ReplyTo(),
            )
            self._plan(int(at_ms), submitted)

    def kill(self, *, boards: int, between_ms: tuple[int, int]) -> None:
        """Let boards die without a will at random moments and come back half a minute later."""
        for worker in self._random.sample(sorted(self._boards), boards):
            at_ms = self._random.randint(*between_ms)
            self._plan(at_ms, worker)
            self._plan(at_ms + 30_000, worker)

    def play(self) -> Run:
        """Live until every job has its result."""
        while self._agenda:
            wake_ms = self.engine.next_wake_at_ms()
            if wake_ms is not None and (not self._agenda or wake_ms <= self._agenda[0][0]):
                self.now_ms = max(self.now_ms, wake_ms)
                self._handle(e.TimePassed())
                continue
            at_ms, _, item = heappop(self._agenda)
            self.now_ms = max(self.now_ms, at_ms)
            if isinstance(item, str):
                self._toggle(self._boards[m.WorkerId(item)])
            else:
                self._happen(item)
        return self.run

    def _plan(self, at_ms: int, item: e.AnyEvent | m.WorkerId) -> None:
        self._serial += 1
        heappush(self._agenda, (at_ms, self._serial, item))

    def _happen(self, event: e.AnyEvent) -> None:
        worker = getattr(event, "worker", None)
        board = self._boards.get(worker) if worker else None
        if board is not None and not board.is_alive:
            return
        self._handle(event)
        if isinstance(event, e.StateReceived) and len(self.run.results) < self._submitted:
            self._plan(self.now_ms + HEARTBEAT_MS, event)

    def _handle(self, event: e.AnyEvent) -> None:
        self.run.turns += 1
        for command in self.engine.handle(event, self.now_ms):
            if not isinstance(command, c.Send):
                continue
            if isinstance(command.message, m.Assignment):
                self._work(self._boards[m.WorkerId(command.ids[0])], command.message)
            elif isinstance(command.message, m.JobResult) and command.confirms is not None:
                self._hear(command.confirms, command.message)

    def _work(self, board: Board, assignment: m.Assignment) -> None:
        if not board.is_alive:
            return
        key, attempt = m.JobKey(assignment.job), assignment.attempt
        tokens = self._random.randint(8, assignment.generation.max_tokens)
        starts_ms = max(board.free_at_ms, self.now_ms + 2)
        board.free_at_ms = starts_ms + int(tokens / board.tok_s * 1_000)
        start = e.StartReceived(worker=board.id, job=key, attempt=attempt)
        self._plan(self.now_ms + 2, start)
        for at_ms in range(self.now_ms + RENEW_MS, board.free_at_ms, RENEW_MS):
            self._plan(at_ms, e.ProgressReceived(worker=board.id, job=key, attempt=attempt))
        answer = m.LocalAnswer(text="it is fine", model="small")
        done = m.JobDone(attempt=attempt, answer=answer)
        self._plan(board.free_at_ms, e.DoneReceived(worker=board.id, job=key, done=done))

    def _hear(self, key: m.JobKey, result: m.JobResult) -> None:
        self.run.results.setdefault(key, []).append(result)
        self.run.latencies_ms.append(result.timing_ms.total)
        self._plan(self.now_ms, e.ResultConfirmed(job=key))

    def _toggle(self, board: Board) -> None:
        board.is_alive = not board.is_alive
        if board.is_alive:
            board.boot += 1
            board.free_at_ms = self.now_ms
            self._join(board)

    def _join(self, board: Board) -> None:
        boot = f"boot{board.boot}"
        model = m.ModelInfo(name="small", version="1", context_tokens=2_048)
        benchmark = m.Benchmark(
            decode_tok_s=board.tok_s, prefill_tok_s=board.tok_s, bandwidth_mbps=100.0
        )
        info = m.WorkerInfo(boot=boot, slots=1, prefetch=1, models=(model,), benchmark=benchmark)
        online = m.Presence(status=m.PresenceStatus.ONLINE, boot=boot)
        self._handle(e.PresenceChanged(worker=board.id, presence=online))
        self._handle(e.InfoReceived(worker=board.id, info=info))
        self._handle(e.HeldReceived(worker=board.id, held=m.HeldJobs(boot=boot)))
        jitter_ms = self._random.randrange(HEARTBEAT_MS)
        self._plan(self.now_ms + jitter_ms, e.StateReceived(worker=board.id, state=STATE))
