"""Equal questions that are open at the same time: one is answered, the others wait for its answer.

The others (followers) are queued jobs that are not in the queue. If the one that leads ends without
an answer, the best of them takes over. Nothing of this is stored: on recovery the groups are formed
again from the open jobs.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec.structs import replace

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.outbox import DEADLINE, NOT_STARTED, Outbox
from cloud_dispatcher.core.overload import SHED
from cloud_dispatcher.core.results import shared_result
from fleet_protocol.messages import Defer, JobKey, JobStatus

_Question: TypeAlias = tuple[bytes, bool, str]
_OWN_ENDS: Final = frozenset({DEADLINE, NOT_STARTED, SHED})


class _Group:
    """Open jobs with the same question."""

    def __init__(self, leader: JobKey) -> None:
        self.leader = leader
        self.followers: dict[JobKey, None] = {}


class Coalescer:
    """Keeps the groups. A job is in one from when it is admitted until it has its result."""

    def __init__(self, ledger: Ledger, outbox: Outbox) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._groups: dict[_Question, _Group] = {}

    def follows(self, job: Job, *, save: bool = True) -> bool:
        """Let a queued job wait for an equal one, and say so; False: it must be placed itself.

        One that is more urgent than the leader goes to the queue in its place.
        """
        question = _question_of(job)
        if question is None:
            return False
        group = self._groups.get(question)
        if group is None:
            self._groups[question] = _Group(job.key)
            return False
        leader = self._ledger.jobs[group.leader]
        if self._waits(leader) and _urgency(job) < _urgency(leader):
            self._lead(group, job)
            return False
        group.followers[job.key] = None
        self._park(job, save=save)
        return True

    def work_goes_on(self, job: Job) -> None:
        """Take note, on recovery, of a job that is being answered: equal ones follow it."""
        question = _question_of(job)
        if question is None:
            return
        group = self._groups.get(question)
        if group is None:
            self._groups[question] = _Group(job.key)
        elif self._waits(self._ledger.jobs[group.leader]):
            self._lead(group, job)
        else:
            group.followers[job.key] = None

    def is_followed(self, job: Job) -> bool:
        """Tell whether others wait for this job's answer."""
        question = _question_of(job)
        group = None if question is None else self._groups.get(question)
        return group is not None and group.leader == job.key and bool(group.followers)

    def leave(self, job: Job) -> None:
        """Let a job that nobody follows be no business of ours any more."""
        question = _question_of(job)
        group = None if question is None else self._groups.get(question)
        if question is not None and group is not None and group.leader == job.key:
            del self._groups[question]

    def has_begun(self, job: Job) -> bool:
        """Tell whether somebody works on the answer that a job waits for."""
        question = _question_of(job)
        group = None if question is None else self._groups.get(question)
        if group is None or job.key not in group.followers:
            return False
        return self._ledger.jobs[group.leader].lease_until_ms is not None

    def settle(self, job: Job) -> Job | None:
        """Give the followers of a finished job their results; return who takes over from it, if so.

        What is only this job's own end (cancelled, failed, its deadline, that it made way) ends no
        other job.
        """
        question = _question_of(job)
        group = None if question is None else self._groups.get(question)
        if question is None or group is None or job.key not in (group.leader, *group.followers):
            return None
        led = job.key == group.leader
        group.followers.pop(job.key, None)
        result = job.result
        if result is not None and result.status is JobStatus.OK and result.code not in _OWN_ENDS:
            del self._groups[question]
            for key in (*group.followers, *(() if led else (group.leader,))):
                follower = self._ledger.jobs[key]
                self._ledger.call_off(follower)
                shared = shared_result(follower, result, now_ms=self._ledger.now_ms)
                self._outbox.finish(follower, shared, dead=job.dead)
            return None
        return self._succeed(question, group) if led else None

    def _succeed(self, question: _Question, group: _Group) -> Job | None:
        """Let the most urgent follower lead; return it if it has to be placed."""
        jobs = self._ledger.jobs
        if not group.followers:
            del self._groups[question]
            return None
        heir = min((jobs[key] for key in group.followers), key=_urgency)
        del group.followers[heir.key]
        group.leader = heir.key
        is_parked = heir.status is JobStatus.QUEUED and heir.key not in self._ledger.queue
        return heir if is_parked else None

    def _lead(self, group: _Group, job: Job) -> None:
        """Let a job lead in place of one that still waits in the queue."""
        before = self._ledger.jobs[group.leader]
        group.followers[before.key] = None
        group.leader = job.key
        self._ledger.queue.remove(before.key)
        self._park(before, save=False)

    def _park(self, job: Job, *, save: bool) -> None:
        # Without its pause after a failure, the end of which would put it back into the queue.
        self._ledger.put(replace(job, not_before_ms=0), save=save)

    def _waits(self, job: Job) -> bool:
        return job.key in self._ledger.queue


def _question_of(job: Job) -> _Question | None:
    """Nobody waits for who waits for a cheaper hour, but one that may wait, too.

    Nor for the answer of a key with a budget of its own, but that key: it may be a second-best one.
    """
    if job.answer_key is None:
        return None
    is_limited = job.payer is not None and job.payer.daily_usd is not None
    key = job.payer.key if job.payer is not None and is_limited else ""
    return job.answer_key, job.submit.defer is Defer.OFFPEAK, key


def _urgency(job: Job) -> tuple[int, int]:
    return -job.submit.priority, job.presses_at_ms
