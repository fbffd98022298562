"""One run: the real engine, fed what the service feeds it, and boards that do what it says."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

import msgspec

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.scheduler import Policy
from cloud_dispatcher.simulation.arrivals import CHARS_PER_TOKEN, Demand, draw
from cloud_dispatcher.simulation.board import MODEL, Board, Row
from cloud_dispatcher.simulation.faults import Trouble, Turn, claim_of, turns_of
from cloud_dispatcher.simulation.kinds import batch_gain
from cloud_dispatcher.simulation.scenario import Scenario
from fleet_protocol import messages as m

HEARTBEAT_MS: Final = 5_000
STARTED_MS: Final = 250
RENEW_SHARE: Final = 3
LOOK_MS: Final = 1_000
"""As real workers and the real service do: a heartbeat each 5 s, give or take a fifth; `started`
for what takes longer than a quarter of a second; a renewal each third of a lease."""

_NEVER_MS: Final = 2**62
_PROMPT: Final = "x" * 8_192


class Ending(msgspec.Struct, frozen=True):
    """How a job ended.

    Attributes:
        number: Of the job, in order of arrival.
        span_ms: From submission to answer; without one, at least until the deadline.
        attempts: Leases it took.
    """

    number: int
    device: int
    span_ms: int
    attempts: int
    in_time: bool


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run.

    Attributes:
        span_ms: From the first to the last submission.
        busy: Slots in use, over the slots of all boards, until the last submission.
        events: That the engine handled.
    """

    endings: list[Ending]
    span_ms: int
    busy: float
    events: int


class World:
    """A fleet, its dispatcher and its devices, in virtual time.

    What boards, devices and misfortune do is drawn from the seed alone, each from a source of its
    own: two policies with the same seed meet the same jobs, the same boards and the same faults.
    """

    def __init__(self, scenario: Scenario, seed: int, *, trace: list[Demand] | None = None) -> None:
        """Draw everything; `trace` replaces the jobs that would be drawn."""
        self.scenario = scenario
        self.now_ms = 0
        self.boards = {board.id: board for board in _boards(scenario, seed)}
        self.demands = trace or _demands(scenario, seed, self.boards.values())
        self._seed = seed
        self._agenda: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._endings: dict[int, Ending] = {}
        self._events = 0
        self._busy = 0.0

    def play(self, policy: Policy) -> Outcome:
        """Run until every job has its result. Once only."""
        self._engine = Engine(self.scenario.engine, "sim", policy=policy)
        self._engine.recover([], 0)
        last_ms = self.demands[-1].at_ms
        for board in self.boards.values():
            random = Random(f"{self._seed} faults {board.id}")
            for turn in turns_of(self.scenario.faults, random, until_ms=last_ms):
                self._plan(turn.at_ms, self._befall, board, turn)
            self._join(board)
            beats = Random(f"{self._seed} beats {board.id}")
            self._plan(beats.randrange(HEARTBEAT_MS), self._beat, board, beats)
        self._plan(LOOK_MS, self._look)
        self._plan(self.demands[0].at_ms, self._submit, 0)
        self._plan(last_ms, self._weigh)
        self._live()
        return Outcome(
            endings=[self._endings[number] for number in range(len(self.demands))],
            span_ms=last_ms - self.demands[0].at_ms,
            busy=self._busy,
            events=self._events,
        )

    def demand_of(self, key: m.JobKey) -> Demand:
        """Return what a job asks."""
        return self.demands[int(key[1:])]

    def tokens_of(self, key: m.JobKey, board: Board) -> float:
        """Return the work of a job on a board, in tokens written."""
        demand = self.demand_of(key)
        return demand.answer_tokens + board.kind.read_cost * demand.prompt_tokens

    # ------------------------------------------------------------ time

    def _live(self) -> None:
        agenda, engine, jobs = self._agenda, self._engine, len(self.demands)
        while len(self._endings) < jobs:
            at_ms = agenda[0][0]
            if at_ms > self.now_ms:
                wake_ms = engine.next_wake_at_ms()
                if wake_ms is not None and wake_ms <= at_ms:
                    self.now_ms = max(self.now_ms, wake_ms)
                    self._handle(e.TimePassed())
                    continue
                self.now_ms = at_ms
            _, _, act, how = heappop(agenda)
            act(*how)

    def _plan(self, at_ms: int, act: Callable[..., None], *how: Any) -> None:
        self._serial += 1
        heappush(self._agenda, (max(at_ms, self.now_ms), self._serial, act, how))

    # ------------------------------------------------------------ the dispatcher's shell

    def _handle(self, event: e.AnyEvent) -> None:
        self._events += 1
        told: list[m.JobKey] = []
        for command in self._engine.handle(event, self.now_ms):
            if type(command) is c.Send:
                self._carry_out(command, told)
        for key in told:
            self._handle(e.ResultConfirmed(job=key))

    def _carry_out(self, send: c.Send, told: list[m.JobKey]) -> None:
        """Say what the engine wants to be said; note whose result is told thereby."""
        match send.message:
            case m.Assignment() as assignment:
                board = self.boards[m.WorkerId(send.ids[0])]
                board.coming.add(m.JobKey(assignment.job))
                self._tell(board, send.expiry_ms, self._assign, board, assignment)
            case m.JobResult() as result if send.confirms is not None:
                is_ok = result.status is m.JobStatus.OK
                self._end(int(result.id), result.attempts, is_ok=is_ok)
                told.append(send.confirms)
            case m.JobAck(status=m.AckStatus.REJECTED):
                self._end(int(send.ids[1]), 0, is_ok=False)
            case m.WorkerCancel() as cancel:
                board = self.boards[m.WorkerId(send.ids[0])]
                self._tell(board, send.expiry_ms, self._cancel, board, cancel)
            case _:
                pass

    def _look(self) -> None:
        self._handle(e.LoadLooked())
        self._plan(self.now_ms + LOOK_MS, self._look)

    # ------------------------------------------------------------ devices

    def _submit(self, number: int) -> None:
        demand = self.demands[number]
        submit = m.JobSubmit(
            prompt=_PROMPT[: demand.prompt_tokens * CHARS_PER_TOKEN],
            max_tokens=demand.max_tokens,
            escalate=m.Escalate.NEVER,
            deadline_ms=demand.deadline_ms,
            priority=demand.priority,
            cache=m.Caching.OFF,
        )
        device = m.DeviceId(f"device-{demand.device:03}")
        key, name = m.JobKey(f"K{number:07}"), m.JobId(str(number))
        event = e.JobSubmitted(key=key, device=device, id=name, submit=submit, reply=ReplyTo())
        if number + 1 < len(self.demands):
            self._plan(self.demands[number + 1].at_ms, self._submit, number + 1)
        self._handle(event)

    def _end(self, number: int, attempts: int, *, is_ok: bool) -> None:
        demand = self.demands[number]
        span_ms = self.now_ms - demand.at_ms
        in_time = is_ok and span_ms <= demand.deadline_ms
        # Who got no answer got nothing for as long as it was worth anything.
        span_ms = span_ms if is_ok else max(span_ms, demand.deadline_ms)
        self._endings[number] = Ending(number, demand.device, span_ms, attempts, in_time)

    def _weigh(self) -> None:
        """Note how busy the boards were until now."""
        for board in self.boards.values():
            board.remaining_tokens(self.now_ms)
        slots = sum(board.kind.slots for board in self.boards.values())
        busy_ms = sum(board.busy_ms for board in self.boards.values())
        self._busy = busy_ms / (slots * max(self.now_ms, 1))

    # ------------------------------------------------------------ boards

    def _tell(
        self, board: Board, expiry_ms: int | None, act: Callable[..., None], *how: Any
    ) -> None:
        """Let something reach a board over its link, or wait for it at the broker."""
        until_ms = _NEVER_MS if expiry_ms is None else self.now_ms + expiry_ms
        arrives_ms = self.now_ms + round(board.kind.latency_ms)
        self._plan(arrives_ms, self._reach, board, until_ms, lambda: act(*how))

    def _reach(self, board: Board, until_ms: int, act: Callable[[], None]) -> None:
        if board.is_reachable:
            act()
        else:
            board.inbox.append((until_ms, act))

    def _say(self, board: Board, event: e.AnyEvent) -> None:
        """Let something reach the dispatcher, or wait until the board is heard."""
        if board.is_reachable:
            self._plan(self.now_ms + round(board.kind.latency_ms), self._handle, event)
        else:
            board.outbox.append(event)

    def _assign(self, board: Board, assignment: m.Assignment) -> None:
        key, attempt = m.JobKey(assignment.job), assignment.attempt
        demand = self.demand_of(key)
        board.coming.discard(key)
        if board.is_failing:
            failed = m.JobFailed(attempt=attempt, code="local_error")
            self._say(board, e.FailureReceived(worker=board.id, job=key, failure=failed))
            return
        usage = m.Usage(prompt_tokens=demand.prompt_tokens, completion_tokens=demand.answer_tokens)
        answer = m.LocalAnswer(text="simulated", model=MODEL.name, usage=usage)
        row = Row(key, attempt, self.tokens_of(key, board), answer)
        board.take(row, self.now_ms)
        self._plan(self.now_ms + STARTED_MS, self._renew, board, row, assignment.lease_ms)
        self._expect(board)

    def _renew(self, board: Board, row: Row, lease_ms: int) -> None:
        """Say that an attempt has started, later that it goes on, for as long as it does."""
        if board.rows.get(row.key) is not row:
            return
        if board.is_reachable:
            kind = e.StartReceived if row.heard_ms is None else e.ProgressReceived
            self._say(board, kind(worker=board.id, job=row.key, attempt=row.attempt))
            row.heard_ms = self.now_ms
        self._plan(self.now_ms + lease_ms // RENEW_SHARE, self._renew, board, row, lease_ms)

    def _cancel(self, board: Board, cancel: m.WorkerCancel) -> None:
        board.cancel(m.JobKey(cancel.job), cancel.attempt, self.now_ms)
        self._expect(board)

    def _expect(self, board: Board) -> None:
        due_ms = board.done_at_ms()
        if due_ms is not None:
            self._plan(due_ms, self._finish, board, board.plan)

    def _finish(self, board: Board, plan: int) -> None:
        if board.plan != plan:
            return
        for row in board.finish(self.now_ms):
            done = m.JobDone(attempt=row.attempt, answer=row.answer)
            self._say(board, e.DoneReceived(worker=board.id, job=row.key, done=done))
        self._expect(board)

    def _beat(self, board: Board, random: Random) -> None:
        if board.is_up:
            state = board.heartbeat(self.now_ms)
            if board.is_linked:  # What nobody hears is not kept: it is QoS 0.
                self._say(board, e.StateReceived(worker=board.id, state=state))
        pause_ms = round(HEARTBEAT_MS * random.uniform(0.8, 1.2))
        self._plan(self.now_ms + pause_ms, self._beat, board, random)

    def _join(self, board: Board) -> None:
        """Say hello: presence, abilities, what is held; then all that was not said before."""
        presence = m.Presence(status=m.PresenceStatus.ONLINE, boot=board.name_of_boot)
        self._say(board, e.PresenceChanged(worker=board.id, presence=presence))
        self._say(board, e.InfoReceived(worker=board.id, info=board.info))
        self._say(board, e.HeldReceived(worker=board.id, held=board.held))
        unsaid, board.outbox = board.outbox, []
        for event in unsaid:
            self._say(board, event)
        board.coming.clear()
        waiting, board.inbox = board.inbox, []
        for until_ms, act in waiting:
            if until_ms > self.now_ms:
                act()

    def _befall(self, board: Board, turn: Turn) -> None:
        was_reachable = board.is_reachable
        if turn.trouble is Trouble.THROTTLING:
            board.set_speed(self.scenario.faults.throttled_to if turn.begins else 1.0, self.now_ms)
        elif turn.trouble is Trouble.LINK_LOSS:
            board.is_linked = not turn.begins
        elif turn.trouble is Trouble.FAILING:
            board.is_failing = turn.begins
        elif turn.begins:
            board.lose_power(self.now_ms)
        else:
            board.get_power(self.now_ms)
        if board.is_reachable and not was_reachable:
            self._join(board)
        self._expect(board)


def _boards(scenario: Scenario, seed: int) -> list[Board]:
    kinds, boards = scenario.all_kinds, list[Board]()
    for name, count in scenario.boards.items():
        for number in range(count):
            worker = m.WorkerId(f"{name}-{number:05}")
            claim = claim_of(scenario.faults, Random(f"{seed} claim {worker}"))
            boards.append(Board(worker, kinds[name], claim))
    return boards


def _demands(scenario: Scenario, seed: int, boards: Any) -> list[Demand]:
    kinds = [board.kind for board in boards]
    capacity_tok_s = sum(kind.decode_tok_s * batch_gain(kind.slots) for kind in kinds)
    cost = sum(kind.read_cost for kind in kinds) / len(kinds)
    random = Random(f"{seed} arrivals")
    return draw(scenario.arrivals, capacity_tok_s=capacity_tok_s, cost=cost, random=random)
