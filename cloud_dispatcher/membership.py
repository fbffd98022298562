"""What several dispatchers need of the store they share: who is there, and what is whose.

A member holds a lease by the store's own clock. Whoever lets it run out is over for good: the store
takes nothing from it any more, not even what it decided before. So nobody is told anything by two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import Figures, Member, MemberId
from cloud_dispatcher.ports import JobStore
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import DeviceId, JobId, JobKey, WorkerId


class MemberFencedError(FleetError):
    """This dispatcher's lease ran out and others took over; nothing of the call was done.

    Also raised where the store says otherwise than we remember: only a new start can heal that.
    """

    code = "member_fenced"


class ClusterStore(JobStore, Protocol):
    """A JobStore that several dispatchers share, as one of them sees it.

    Every call that changes anything raises MemberFencedError where we are no member any more, in
    the same transaction; `commit` too. A job that is saved is ours. `load_open` finds nothing: what
    others left is adopted.
    """

    @property
    def me(self) -> MemberId:
        """Who we are."""
        ...

    async def join(self) -> None:
        """Become a member. An earlier run of the same name is over."""
        ...

    async def leave(self) -> None:
        """Be a member no more: what is ours is for the others."""
        ...

    async def beat(self, figures: Figures) -> Sequence[Member]:
        """Renew our lease, end those that ran out, and return who is there, oldest first."""
        ...

    async def claim(
        self,
        names: Collection[tuple[DeviceId, JobId]],
        *,
        release: Collection[tuple[DeviceId, JobId]] = (),
    ) -> frozenset[tuple[DeviceId, JobId]]:
        """Return those names that nobody else is about to save a job under; they are held for us.

        To be called before the store is asked for the jobs of these names. A claim ends with its
        release, or with its holder.
        """
        ...

    async def owners(self, keys: Iterable[JobKey]) -> Mapping[JobKey, MemberId]:
        """Return whose these jobs are; those of nobody who is there are left out."""
        ...

    async def take(self, key: JobKey) -> bool:
        """Make a finished job ours whose owner is gone; return whether it is ours now."""
        ...

    async def hand_over(self, keys: Collection[JobKey], to: MemberId) -> bool:
        """Let another member have jobs of ours; False: it is gone, and they are ours still."""
        ...

    async def receive(self) -> list[Job]:
        """Return the jobs that were handed over to us since the last call, oldest first."""
        ...

    async def adopt(self, workers: Collection[WorkerId], *, limit: int) -> list[Job]:
        """Make jobs ours whose owner is gone, and return them, oldest first; empty: none is left.

        What works on one of our own workers comes first, and what works on another's is left to it
        for a moment. A job comes with its parts.

        Args:
            workers: Ours.
            limit: Most jobs, parts not counted.
        """
        ...

    async def claim_workers(
        self, workers: Collection[WorkerId], *, most: int
    ) -> frozenset[WorkerId]:
        """Return those that are ours now, because they were nobody's; at most so many."""
        ...

    async def release_workers(self, workers: Collection[WorkerId]) -> None:
        """Let others have workers of ours."""
        ...

    async def owner_of(self, worker: WorkerId) -> MemberId | None:
        """Return whose a worker is."""
        ...
