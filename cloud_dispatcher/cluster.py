"""Keeps this dispatcher a member among several, and says what is its own business.

A beat renews the lease in the store and brings what became ours: free workers up to our share, jobs
of members that are gone, jobs that others had no room for. All of it reaches the engine as events.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Final, Protocol, Self, TypeAlias

import msgspec
import structlog
from msgspec.structs import replace

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.boards import Boards
from cloud_dispatcher.core.commands import HandOver
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import Figures, Member, MemberId, leads, offers_to
from cloud_dispatcher.core.overview import merged
from cloud_dispatcher.core.spending import Spend, day_of
from cloud_dispatcher.membership import ClusterStore, MemberFencedError
from cloud_dispatcher.ports import StoreUnavailableError
from fleet_protocol import messages as m

_log = structlog.get_logger(__name__)

_ADOPTED_AT_ONCE: Final = 500
"""Jobs taken up in one turn: others get their turn in between, and other members their part."""
_CUT_OFF_LEASES: Final = 3
"""After a restart of the broker some are back a while before others: their tries have pauses."""
_JOB_OPS: Final = frozenset({m.AdminOp.JOB_SHOW, m.AdminOp.JOB_CANCEL, m.AdminOp.JOB_RETRY})
_OPS_OF_ALL: Final = frozenset({m.AdminOp.WORKERS_LIST, m.AdminOp.CACHE_CLEAR})

Name: TypeAlias = tuple[m.DeviceId, m.JobId]


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several dispatchers at once, on one store and one broker (or cluster of brokers).

    Attributes:
        name: This dispatcher's own among them; None: it is the only one.
        lease_s: A dispatcher that the store did not hear of for so long is over.
        beat_ms: How often it is heard of, and looks what the others left or gave to it.
    """

    name: Annotated[str, msgspec.Meta(pattern=m.ID_PATTERN)] | None = None
    lease_s: Annotated[float, msgspec.Meta(ge=1.0, le=600.0)] = 5.0
    beat_ms: Annotated[int, msgspec.Meta(ge=50, le=60_000)] = 500


class _Lines(Protocol):
    @property
    def are_up(self) -> bool:
        """Whether the broker is there."""
        ...

    def listen(self, workers: Iterable[m.WorkerId]) -> None:
        """Hear what these workers say of their jobs from now on."""
        ...

    def forget(self, workers: Iterable[m.WorkerId]) -> None:
        """Hear it no more."""
        ...


class Cluster:
    """One member's part in it.

    Attributes:
        members: Who was there at the last beat, oldest first.
    """

    def __init__(
        self,
        store: ClusterStore,
        *,
        figures: Callable[[], Figures],
        report: Callable[[e.AnyEvent], None],
        clock: Callable[[], int],
        lines: _Lines,
        settings: ClusterSettings = ClusterSettings(),  # noqa: B008 - frozen
    ) -> None:
        """Make a member that is not there yet.

        Args:
            store: Shared by all members.
            figures: How it stands here.
            report: Takes what the engine is to hear of.
            clock: UTC epoch milliseconds.
            lines: To the workers that are ours.
            settings: See there.
        """
        self.members: Sequence[Member] = ()
        self._store = store
        self._figures = figures
        self._report = report
        self._clock = clock
        self._lines = lines
        self._settings = settings
        self._cut_off_at_ms: int | None = None
        self._boards = Boards()
        # Names of turns that are not saved yet, how often each; then those to be released.
        self._held: Counter[Name] = Counter()
        self._done: set[Name] = set()
        self._claiming = asyncio.Lock()
        self._shares = (0, 0)
        self._spends: Sequence[Spend] = ()
        self._finished: tuple[int, int] | None = None

    @property
    def leads(self) -> bool:
        """Whether we speak for all members."""
        return leads(self.members, self._store.me)

    # ---------------------------------------------------------------- being a member

    async def __aenter__(self) -> Self:
        """Become a member, and look who else is there.

        Raises:
            StoreUnavailableError: The store cannot be asked now.
        """
        await self._store.join()
        await self.beat()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave what is ours to the others, without a wait for our lease to run out."""
        try:
            await self._store.leave()
        except (StoreUnavailableError, MemberFencedError) as error:
            _log.warning("cluster.not_left", error=str(error), hint=error.hint)

    def spoken(self, own: m.FleetSummary) -> m.FleetSummary | None:
        """Return the overview of all members if it is ours to tell."""
        if not self.leads:
            return None
        others = (x.figures.summary for x in self.members if x.id != self._store.me)
        return merged(own, [summary for summary in others if summary is not None])

    async def run(self) -> None:
        """Beat until cancelled.

        Raises:
            MemberFencedError: We are over.
        """
        while True:
            try:
                has_more = await self.beat()
            except StoreUnavailableError as error:
                _log.warning("cluster.no_beat", error=str(error), hint=error.hint)
                has_more = False
            await asyncio.sleep(0 if has_more else self._settings.beat_ms / 1_000)

    async def beat(self) -> bool:
        """Renew the lease, and take what is ours; return whether more waits to be adopted.

        Raises:
            MemberFencedError: We are over.
            StoreUnavailableError: The store cannot be asked now.
        """
        store, boards = self._store, self._boards
        before = {member.id for member in self.members}
        self.members = members = await store.beat(self._measured())
        _log_changes(before, members)
        if not await self._may_take():
            return False
        if boards.gone:
            await store.release_workers(gone := frozenset(boards.gone))
            self.forget(gone)
        if self._done:
            await self._claim(frozenset())
        granted: Collection[m.WorkerId] = ()
        wanted, most = boards.wanted(members, store.me)
        if wanted and most:
            granted = await store.claim_workers(wanted, most=most)
        jobs = await store.adopt(boards.mine | set(granted), limit=_ADOPTED_AT_ONCE)
        handed = await store.receive()
        spends = await store.spending(since_day=day_of(self._clock()))
        self._take(granted, jobs, handed)
        self._tell_shares(spends)
        return len(jobs) >= _ADOPTED_AT_ONCE

    async def _may_take(self) -> bool:
        """Whether the broker is there: what is ours could not be served without it.

        Raises:
            MemberFencedError: For some time it was there for others, and not for us: what was ours
                is for them.
        """
        now_ms, is_linked = self._clock(), self._lines.are_up
        others = (x.figures.linked for x in self.members if x.id != self._store.me)
        if is_linked or not any(others):
            self._cut_off_at_ms = None
            return is_linked
        if self._cut_off_at_ms is None:
            self._cut_off_at_ms = now_ms
        if now_ms - self._cut_off_at_ms >= _CUT_OFF_LEASES * 1_000 * self._settings.lease_s:
            await self._store.leave()
            raise MemberFencedError(
                "the broker is there for other dispatchers, and not for this one",
                hint="check its way to the broker; the others have its jobs and workers",
            )
        return False

    def _take(
        self, granted: Collection[m.WorkerId], jobs: Sequence[Job], handed: Sequence[Job]
    ) -> None:
        """Let workers and jobs be ours: all at once, so that no worker's word comes between."""
        if granted or jobs:
            _log.info("cluster.taken", workers=len(granted), jobs=len(jobs))
            self._lines.listen(granted)
            acquired = self._boards.acquire(granted)
            self._report(e.BoardsAcquired(boards=acquired, jobs=tuple(jobs)))
        if handed:
            self._report(e.BoardsAcquired(jobs=tuple(handed), handed_over=True))

    def _tell_shares(self, spends: Sequence[Spend]) -> None:
        """Tell the engine what follows for it from how it stands with the others."""
        members, me = self.members, self._store.me
        shares = (len(members), self._boards.surplus(members, me))
        if shares != self._shares or shares[1]:
            self._shares = shares
            self._report(e.SharesFound(members=shares[0], surplus=shares[1]))
        offers = offers_to(members, me)
        if offers and self._figures().waiting:
            self._report(e.RoomOffered(offers=offers))
        if spends != self._spends:
            self._spends = spends
            self._report(e.SpendingRead(spends=tuple(spends)))

    def _measured(self) -> Figures:
        """Add to our room what we finish within a second."""
        figures, now_ms = self._figures(), self._clock()
        if not self._lines.are_up:
            return replace(figures, room=0, linked=False)
        if figures.summary is None:
            return figures
        finished = sum(figures.summary.finished.values())
        before_ms, before = self._finished or (now_ms, finished)
        self._finished = (now_ms, finished)
        span_ms = now_ms - before_ms
        if span_ms <= 0 or not figures.contexts:
            return figures
        lately = (finished - before) * 1_000 // span_ms
        return replace(figures, room=figures.room + max(lately, 0))

    # ---------------------------------------------------------------- what is ours

    def hear(self, event: e.AnyEvent) -> e.AnyEvent | None:
        """Return what the engine is to hear of; None: it is another member's business."""
        return self._boards.hear(event)

    def forget(self, workers: Collection[m.WorkerId]) -> None:
        """Let workers be ours no more; the store hears of it when the turn is saved."""
        if workers:
            self._boards.release(workers)
            self._lines.forget(workers)

    async def claim(self, names: Collection[Name]) -> frozenset[Name]:
        """Return which of these names are ours alone to save a job under, until `saved`."""
        granted = await self._claim(frozenset(names))
        self._held.update(granted)
        return granted

    def saved(self, names: Iterable[Name]) -> None:
        """Hold these names no longer for a turn: its jobs are saved, or there are none."""
        for name in names:
            self._held[name] -= 1
            if self._held[name] <= 0:
                del self._held[name]
                self._done.add(name)

    async def _claim(self, names: frozenset[Name]) -> frozenset[Name]:
        """Claim, and release what no turn holds any more; one at a time, or they would cross."""
        async with self._claiming:
            done = frozenset(self._done) - names
            granted = await self._store.claim(names, release=done)
            self._done -= done | granted
            return granted

    async def give(self, commands: Iterable[HandOver], workers: Collection[m.WorkerId]) -> None:
        """Give jobs and workers away, after the turn was saved that decided it.

        Jobs whose taker is gone meanwhile come back.
        """
        if workers:
            await self._store.release_workers(workers)
        by_member: dict[MemberId, list[m.JobKey]] = {}
        for command in commands:
            by_member.setdefault(command.member, []).append(command.job)
        for member, keys in by_member.items():
            _log.info("cluster.handed_over", jobs=len(keys), to=member)
            if not await self._store.hand_over(keys, member):
                jobs = [job for key in keys if (job := await self._store.get(key)) is not None]
                self._report(e.BoardsAcquired(jobs=tuple(jobs)))

    # ---------------------------------------------------------------- who answers

    async def ours(
        self,
        events: Sequence[e.AnyEvent],
        known: Mapping[tuple[str, str], Job],
        found: Mapping[str, Job],
        claimed: Collection[Name],
    ) -> list[e.AnyEvent]:
        """Return those events that are for us to deal with.

        What names a job of another member is that one's, which hears of it, too; for nobody's jobs
        the oldest member speaks.

        Args:
            events: As they came.
            known: Jobs in the store that these name as their devices do, and are not open here.
            found: Jobs in the store that operators name, likewise.
            claimed: Names that are ours to save a job under.
        """
        named = {(x.device, x.id) for x in events if isinstance(x, e.JobCancelled)}
        keys = [known[name].key for name in named if name in known]
        keys += [job.key for job in found.values()]
        owners = await self._store.owners(keys) if keys else {}
        kept = list[e.AnyEvent]()
        for event in events:
            if isinstance(event, e.JobSubmitted):
                name = (event.device, event.id)
                is_ours = name in known or name in claimed or event.id == m.JobId(event.key)
            elif isinstance(event, e.JobCancelled):
                name = (event.device, event.id)
                is_ours = name in claimed or self._speaks_for(known.get(name), owners)
            elif isinstance(event, e.AdminAsked):
                is_ours = await self._is_asked(event.request, found, owners)
            else:
                is_ours = True
            if is_ours:
                kept.append(event)
        return kept

    def _speaks_for(self, job: Job | None, owners: Mapping[m.JobKey, MemberId]) -> bool:
        owner = None if job is None else owners.get(job.key)
        if owner is not None:
            return owner == self._store.me
        # An open job of nobody's will be somebody's within a moment: that one decides.
        return self.leads and (job is None or not job.is_open)

    async def _is_asked(
        self, request: m.AdminRequest, found: Mapping[str, Job], owners: Mapping[m.JobKey, MemberId]
    ) -> bool:
        if request.op in _OPS_OF_ALL:
            return True
        if request.op in _JOB_OPS:
            job = found.get(request.job or "")
            if not self._speaks_for(job, owners):
                return False
            is_changed = request.op is m.AdminOp.JOB_RETRY and job is not None and job.told
            return not is_changed or job is None or await self._store.take(job.key)
        if request.worker is None:
            return self.leads
        worker = m.WorkerId(request.worker)
        if worker in self._boards.mine:
            return True
        return self.leads and await self._store.owner_of(worker) is None


def _log_changes(before: Collection[MemberId], members: Sequence[Member]) -> None:
    now = {member.id for member in members}
    if now != set(before):
        _log.info("cluster.members", members=[member.name for member in members])
