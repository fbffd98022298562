"""What several dispatchers share, in memory: for tests, and as a model of what a database does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from cloud_dispatcher.adapters.store_memory import MemoryJobStore
from cloud_dispatcher.core.commands import AnswerChange
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import Figures, Member, MemberId
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.membership import MemberFencedError
from fleet_protocol.messages import DeviceId, JobId, JobKey, WorkerId

ELSEWHERE_MS: Final = 2_000
"""So long a job stays with its worker, for whoever gets that; then anybody may have it."""


class _Seat(msgspec.Struct):
    member: Member
    until_ms: int


class MemoryCluster:
    """A database that several `MemoryClusterStore`s share.

    Attributes:
        store: What a single dispatcher would see.
        members: Who holds a lease, oldest first.
        graves: Members that are over and left jobs, each with when that was found.
        owners: Whose each job is.
    """

    def __init__(self, now_ms: Callable[[], int], *, lease_ms: int = 5_000) -> None:
        self.store = MemoryJobStore()
        self.now_ms = now_ms
        self.lease_ms = lease_ms
        self.members: dict[MemberId, _Seat] = {}
        self.graves: dict[MemberId, int] = {}
        self.owners: dict[JobKey, MemberId] = {}
        self.claims: dict[tuple[str, str], MemberId] = {}
        self.workers: dict[WorkerId, MemberId] = {}
        self.handed: dict[JobKey, MemberId] = {}

    def bury(self, member: MemberId) -> None:
        """Let a member be over: its claims and workers are nobody's, its jobs wait for heirs."""
        del self.members[member]
        self.graves[member] = self.now_ms()
        self.claims = {name: who for name, who in self.claims.items() if who != member}
        self.workers = {worker: who for worker, who in self.workers.items() if who != member}
        self.handed = {key: who for key, who in self.handed.items() if who != member}


class MemoryClusterStore(MemoryJobStore):
    """A `ClusterStore` over a `MemoryCluster`."""

    def __init__(self, cluster: MemoryCluster, *, name: str, member: MemberId) -> None:
        super().__init__()
        vars(self).update(vars(cluster.store))  # the same tables
        self._cluster = cluster
        self._name = name
        self.me: Final = member

    async def join(self) -> None:
        """Become a member."""
        cluster = self._cluster
        for old in [m for m, seat in cluster.members.items() if seat.member.name == self._name]:
            cluster.bury(old)
        member = Member(id=self.me, name=self._name)
        cluster.members[self.me] = _Seat(member, cluster.now_ms() + cluster.lease_ms)

    async def leave(self) -> None:
        """Be a member no more."""
        if self.me in self._cluster.members:
            self._cluster.bury(self.me)

    async def beat(self, figures: Figures) -> Sequence[Member]:
        """Renew our lease, end those that ran out, and return who is there, oldest first."""
        self._fence()
        cluster, now_ms = self._cluster, self._cluster.now_ms()
        seat = cluster.members[self.me]
        seat.until_ms = now_ms + cluster.lease_ms
        seat.member = msgspec.structs.replace(seat.member, figures=figures)
        for member, other in list(cluster.members.items()):
            if other.until_ms <= now_ms:
                cluster.bury(member)
        return [seat.member for seat in cluster.members.values()]

    async def commit(
        self,
        jobs: Sequence[Job],
        spends: Sequence[Spend] = (),
        answers: Sequence[AnswerChange] = (),
    ) -> None:
        """Save all of it, as ours, or nothing."""
        self._fence()
        owners = self._cluster.owners
        for job in jobs:
            if self._keys.get((job.device, job.id), job.key) != job.key:
                raise MemberFencedError(f"{job.device} has another job {job.id}")
            if owners.get(job.key, self.me) != self.me:
                raise MemberFencedError(f"the job {job.key} is another member's")
        await super().commit(jobs, spends, answers)
        owners.update(dict.fromkeys([job.key for job in jobs], self.me))

    async def load_open(self) -> list[Job]:
        """Return nothing: nothing is ours yet."""
        return []

    async def claim(
        self,
        names: Collection[tuple[DeviceId, JobId]],
        *,
        release: Collection[tuple[DeviceId, JobId]] = (),
    ) -> frozenset[tuple[DeviceId, JobId]]:
        """Hold names that nobody else holds."""
        self._fence()
        claims = self._cluster.claims
        for name in release:
            if claims.get(name) == self.me:
                del claims[name]
        granted = frozenset(name for name in names if claims.get(name, self.me) == self.me)
        claims.update(dict.fromkeys(granted, self.me))
        return granted

    async def owners(self, keys: Iterable[JobKey]) -> Mapping[JobKey, MemberId]:
        """Return whose these jobs are."""
        cluster = self._cluster
        owners = {key: cluster.owners[key] for key in keys if key in cluster.owners}
        return {key: member for key, member in owners.items() if member in cluster.members}

    async def take(self, key: JobKey) -> bool:
        """Make a finished job ours whose owner is gone; return whether it is ours now."""
        self._fence()
        cluster, job = self._cluster, self._jobs.get(key)
        if job is None or not job.told:
            return False
        if cluster.owners.get(key) not in cluster.members:
            cluster.owners[key] = self.me
        return cluster.owners[key] == self.me

    async def hand_over(self, keys: Collection[JobKey], to: MemberId) -> bool:
        """Let another member have jobs of ours."""
        self._fence()
        cluster = self._cluster
        if to not in cluster.members:
            return False
        for key in keys:
            if cluster.owners[key] != self.me:
                raise MemberFencedError(f"the job {key} is another member's")
            cluster.owners[key] = cluster.handed[key] = to
        return True

    async def receive(self) -> list[Job]:
        """Return the jobs that were handed over to us since the last call."""
        self._fence()
        handed = self._cluster.handed
        keys = sorted(key for key, to in handed.items() if to == self.me)
        for key in keys:
            del handed[key]
        return [self._jobs[key] for key in keys]

    async def adopt(self, workers: Collection[WorkerId], *, limit: int) -> list[Job]:
        """Make jobs ours whose owner is gone."""
        self._fence()
        cluster, found = self._cluster, list[Job]()
        for grave, since_ms in list(cluster.graves.items()):
            left = [self._jobs[key] for key in sorted(self._jobs) if self._is_of(key, grave)]
            is_old = cluster.now_ms() - since_ms >= ELSEWHERE_MS
            whole = [job for job in left if job.part is None]
            ours = [job for job in whole if job.worker in workers]
            rest = [job for job in whole if job.worker is None or is_old]
            heads = {job.key for job in [*ours, *rest][: limit - len(found)]}
            taken = [job for job in left if (job.part.job if job.part else job.key) in heads]
            for job in taken:
                cluster.owners[job.key] = self.me
            found += taken
            if len(taken) == len(left):
                del cluster.graves[grave]
            if len(found) >= limit:
                break
        return found

    async def claim_workers(
        self, workers: Collection[WorkerId], *, most: int
    ) -> frozenset[WorkerId]:
        """Return those that are ours now, because they were nobody's."""
        self._fence()
        owners = self._cluster.workers
        granted = frozenset([worker for worker in workers if worker not in owners][:most])
        owners.update(dict.fromkeys(granted, self.me))
        return granted

    async def release_workers(self, workers: Collection[WorkerId]) -> None:
        """Let others have workers of ours."""
        self._fence()
        for worker in workers:
            if self._cluster.workers.get(worker) == self.me:
                del self._cluster.workers[worker]

    async def owner_of(self, worker: WorkerId) -> MemberId | None:
        """Return whose a worker is."""
        return self._cluster.workers.get(worker)

    def _is_of(self, key: JobKey, grave: MemberId) -> bool:
        return self._cluster.owners.get(key) == grave and not self._jobs[key].told

    def _fence(self) -> None:
        if self.me not in self._cluster.members:
            raise MemberFencedError(
                f"the lease of {self._name} ran out: others have its jobs and workers",
                hint="it starts anew by itself; see docs/cluster.md if that happens again",
            )
