"""The policy that knows everything but the future: what the others are held against."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from msgspec.structs import replace

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.policies import PolicyName, SchedulingSettings, policy_of
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import Policy, Pool, Rank, Serves, WorkerLoad
from cloud_dispatcher.simulation.board import Board
from cloud_dispatcher.simulation.world import World
from fleet_protocol.messages import JobKey, WorkerId

ORACLE = "oracle"
POLICIES = (*map(str, PolicyName), ORACLE)


def policy_named(name: str, settings: SchedulingSettings, world: World) -> Policy:
    """Make one of `POLICIES` for a world, with the settings that are not its name."""
    if name == ORACLE:
        return Oracle(world)
    return policy_of(replace(settings, policy=PolicyName(name)))


class Oracle(Policy):
    """Gives a job to the board where it would really be done first if no other job came.

    It knows each board's true speed at the moment, the length of every answer, what is left of what
    boards hold or is on its way to them, and who cannot be reached. It looks at every board.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: JobKey | None = None

    def ask(self, need: Need, job: Job) -> Need:
        """Remember the job."""
        self._asked = job.key
        return need

    def rank(self, load: WorkerLoad, need: Need) -> Rank:  # pragma: no cover - its pool asks none
        """Say nothing: a board's rank depends on the job."""
        raise NotImplementedError

    def pool(self) -> Pool:
        """Return a pool that looks at every board."""
        return _AllKnown(self)

    def done_in_ms(self, worker: WorkerId) -> float:
        """Return how long the job that was asked for last would take there."""
        if self._asked is None:
            return 0.0
        board = self._world.boards[worker]
        tokens = self._world.tokens_of(self._asked, board)
        held = board.remaining_tokens(self._world.now_ms)
        held += [self._world.tokens_of(key, board) for key in board.coming - board.rows.keys()]
        return 2 * board.kind.latency_ms + done_in_ms(board, held, tokens)


class _AllKnown:
    """The free workers, each looked at."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._filed: dict[WorkerId, Serves] = {}

    def __len__(self) -> int:
        return len(self._filed)

    def file(self, worker: WorkerId, load: WorkerLoad, serves: Serves) -> None:
        """Let a worker be free."""
        del load
        self._filed[worker] = serves

    def strike(self, worker: WorkerId) -> None:
        """Let a worker not be free."""
        self._filed.pop(worker, None)

    def pick_worker(self, need: Need, *, avoid: WorkerId | None = None) -> WorkerId | None:
        """Return the one where the job is done first; `avoid` only if there is no other."""
        able = [worker for worker, serves in self._filed.items() if serves(need)]
        others = [worker for worker in able if worker != avoid] or able
        return min(others, key=self._oracle.done_in_ms, default=None)


def done_in_ms(board: Board, held: list[float], tokens: float) -> float:
    """Return when a job would be done on a board that holds this work, in order, and gets no more.

    Args:
        board: At the speed that it has now; one that cannot be reached is never done.
        held: Tokens left of each attempt, the ones in slots first.
        tokens: Of the job.
    """
    if not board.is_reachable:
        return float("inf")
    slots = board.kind.slots
    # (reading of the meter at which a row ends, whether it is the job)
    rows = [(left, False) for left in held[:slots]]
    waiting = [(left, False) for left in held[slots:]] + [(tokens, True)]
    meter = now_ms = 0.0
    heapify(rows)
    while True:
        while waiting and len(rows) < slots:
            left, is_job = waiting.pop(0)
            heappush(rows, (meter + left, is_job))
        rate = board.rate(len(rows))
        ends, is_job = heappop(rows)
        now_ms += (ends - meter) / rate
        meter = ends
        if is_job:
            return now_ms
