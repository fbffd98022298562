"""Jobs that wait for a slot, best first, apart by what they need of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple, TypeAlias

from cloud_dispatcher.core.job import Job
from fleet_protocol.messages import JobKey
from fleet_protocol.routing import least_prompt_tokens

_PRIORITIES: Final = 10
_SMALL_TOKENS: Final = 256
_NEVER_MS: Final = 2**62

_Rank: TypeAlias = tuple[int, int, int, JobKey]


class Need(NamedTuple):
    """What a job asks of a worker.

    Attributes:
        model: Name of the model it must have; None: any.
        tokens: Least context, rounded down to a power of two so that there are few kinds of need;
            the exact count is the worker's to make. 0 for all that is small.
        work: Class of the work by which a policy ranks workers; 0: it does not look at it.
    """

    model: str | None
    tokens: int
    work: int = 0


def need_of(job: Job) -> Need:
    """Return what a job asks of a worker."""
    submit = job.submit
    tokens = least_prompt_tokens(submit.prompt_chars) + submit.max_tokens
    return Need(submit.model, 0 if tokens < 2 * _SMALL_TOKENS else 1 << tokens.bit_length() - 1)


class JobQueue:
    """Waiting jobs by priority (9 first), deadline, time of receipt, key.

    Jobs with different needs wait in lanes of their own, so that one that fits no free worker
    never blocks another that does. A job whose retry pause is not over is counted but not ready.
    """

    def __init__(self) -> None:
        self._lanes: dict[Need, list[_Rank]] = {}
        self._ready: dict[JobKey, tuple[Need, _Rank]] = {}
        self._pausing: dict[JobKey, int] = {}
        # By the order in which they came to wait; a dict, for any may leave at any time.
        self._by_priority: list[dict[JobKey, None]] = [{} for _ in range(_PRIORITIES)]

    def __len__(self) -> int:
        return len(self._ready) + len(self._pausing)

    @property
    def has_ready(self) -> bool:
        """Whether any job could be given out now."""
        return bool(self._lanes)

    def __contains__(self, key: JobKey) -> bool:
        return key in self._ready or key in self._pausing

    def add(self, job: Job, *, now_ms: int) -> None:
        """Let a job wait; it is ready unless its `not_before_ms` is still to come."""
        self.remove(job.key)
        priority = job.submit.priority
        self._by_priority[priority][job.key] = None
        if job.not_before_ms > now_ms:
            self._pausing[job.key] = priority
            return
        need, rank = need_of(job), _rank(job)
        self._ready[job.key] = (need, rank)
        lane = self._lanes.setdefault(need, [])
        heappush(lane, rank)

    def remove(self, key: JobKey) -> None:
        """Let a job no longer wait. Unknown ones are ignored."""
        entry = self._ready.pop(key, None)
        if entry is not None:
            del self._by_priority[-entry[1][0]][key]
            self._trim(entry[0])
            return
        priority = self._pausing.pop(key, None)
        if priority is not None:
            del self._by_priority[priority][key]

    def ahead_of(self, priority: int) -> int:
        """Return how many wait with this priority or a higher one."""
        return sum(map(len, self._by_priority[priority:]))

    def least(self, *, below: int) -> JobKey | None:
        """Return who is missed least below a priority: of the lowest ones the last that came."""
        for waiting in self._by_priority[:below]:
            if waiting:
                return next(reversed(waiting))
        return None

    def heads(self) -> Iterator[tuple[Need, JobKey]]:
        """Yield the best ready job of each lane, the best of all first."""
        tops = [(lane[0], need) for need, lane in self._lanes.items()]
        for rank, need in sorted(tops, key=lambda top: top[0]) if len(tops) > 1 else tops:
            yield need, rank[3]

    def _trim(self, need: Need) -> None:
        """Keep a waiting job on top of the lane, and the lane from holding mostly ghosts."""
        lane = self._lanes[need]
        while lane and not self._is_waiting(lane[0]):
            heappop(lane)
        if not lane:
            del self._lanes[need]
        elif len(lane) > 2 * len(self._ready) + 1_024:
            lane[:] = [rank for rank in lane if self._is_waiting(rank)]
            heapify(lane)

    def _is_waiting(self, rank: _Rank) -> bool:
        entry = self._ready.get(rank[3])
        return entry is not None and entry[1] is rank


def _rank(job: Job) -> _Rank:
    deadline_ms = _NEVER_MS if job.deadline_at_ms is None else job.deadline_at_ms
    return (-job.submit.priority, deadline_ms, job.received_at_ms, job.key)
