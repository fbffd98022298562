"""What passes between this dispatcher and others: boards and jobs that come, jobs that go.

A board goes only while it holds no lease, and a job only while it waits, so nothing that is under
way ever has two who count it. What comes from a member that is gone is taken up as after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from cloud_dispatcher.core.coalescing import Coalescer
from cloud_dispatcher.core.commands import HandOver, ReleaseWorker
from cloud_dispatcher.core.edge_lane import EdgeLane
from cloud_dispatcher.core.events import (
    BoardsAcquired,
    PresenceChanged,
    RoomOffered,
    SharesFound,
    SpendingRead,
)
from cloud_dispatcher.core.fleet import Worker
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.ledger import LEASED, Ledger
from cloud_dispatcher.core.members import ANY_MODEL, Figures, MemberId, Offer
from cloud_dispatcher.core.queue import need_of
from cloud_dispatcher.core.roster import Roster
from cloud_dispatcher.core.spending import LOCAL_PREFIX
from fleet_protocol import topics
from fleet_protocol.messages import JobKey, PresenceStatus, WorkerCommand, WorkerId, WorkerOp

_WAITED_MS: Final = 1_000
"""A job that will be begun within a second is not worth being handed over."""
_STAYS_MS: Final = 10_000
"""A job that was handed over stays for so long: it is not handed back and forth."""
_LOOKED_AT_MOST: Final = 2_000
"""Waiting jobs that are looked at for one round of offers."""


class Exchange:
    """Takes from other dispatchers, and gives to them."""

    def __init__(
        self,
        ledger: Ledger,
        edge: EdgeLane,
        roster: Roster,
        coalescer: Coalescer,
        *,
        take_up: Callable[[Job], None],
        go_on: Callable[[Sequence[Job]], None],
    ) -> None:
        """Make an exchange that has taken and given nothing.

        Args:
            ledger: The engine's state.
            edge: Gives back what cannot go on where it is.
            roster: Knows what a board's presence means.
            coalescer: Knows who waits for whose answer.
            take_up: Takes up one job of another run.
            go_on: Goes on with all that were taken up, once they are there.
        """
        self._ledger = ledger
        self._edge = edge
        self._roster = roster
        self._coalescer = coalescer
        self._take_up = take_up
        self._go_on = go_on
        self._leaving: set[WorkerId] = set()
        self._stays_until_ms: dict[JobKey, int] = {}

    def on_acquired(self, event: BoardsAcquired) -> None:
        """Boards and jobs are ours from now on. What their boards hold comes before new work."""
        ledger, fleet = self._ledger, self._ledger.fleet
        for board in event.boards:
            worker = ledger.heard(board.worker)
            if board.info is not None:
                fleet.set_info(worker, board.info)
        acquired = {board.worker for board in event.boards}
        jobs = [job for job in event.jobs if job.key not in ledger.jobs]
        for job in jobs:
            if event.handed_over:
                self._stays_until_ms[job.key] = ledger.now_ms + _STAYS_MS
            if self._may_go_on(job, acquired):
                self._take_up(job)
            else:
                self._edge.give_back(job, lapsed=True)
        self._go_on(jobs)
        for board in event.boards:
            self._leaving.discard(board.worker)
            presence = PresenceChanged(worker=board.worker, presence=board.presence)
            self._roster.on_presence(presence)
            self._ask_for_what_is_held(board.worker)

    def on_offered(self, event: RoomOffered) -> None:
        """Others have room: let them have jobs that wait here for nobody in particular."""
        ledger = self._ledger
        self._stays_until_ms = {
            key: until_ms
            for key, until_ms in self._stays_until_ms.items()
            if until_ms > ledger.now_ms and key in ledger.jobs
        }
        left = {offer.member: offer.room for offer in event.offers}
        for key in list(islice(ledger.queue.ready(), _LOOKED_AT_MOST)):
            job = ledger.jobs[key]
            member = self._taker_of(job, event.offers, left) if self._may_go(job) else None
            if member is not None:
                left[member] -= 1
                self._hand_over(job, member)

    def on_shares(self, event: SharesFound) -> None:
        """Let boards go that are another member's share, each once it holds nothing."""
        ledger = self._ledger
        ledger.members = event.members
        ours = [worker for worker in ledger.fleet.workers if _is_there(worker)]
        self._leaving &= {worker.id for worker in ours}
        # Those that leave already first, then those that are free soonest.
        ours.sort(key=lambda w: (w.id not in self._leaving, len(w.leases), w.id))
        leaving = {worker.id for worker in ours[: event.surplus]}
        for worker_id in self._leaving - leaving:
            self._hold_back(worker_id, held=False)
        self._leaving = leaving
        for worker in ours[: event.surplus]:
            self._hold_back(worker.id, held=True)
            if not worker.leases:
                self._let_go(worker)

    def on_spending(self, event: SpendingRead) -> None:
        """What all members together spent today."""
        self._ledger.budget.correct(event.spends, self._ledger.now_ms)

    def our_workers(self) -> list[Worker]:
        """Return the workers without those of other members, of whom only abilities are known."""
        workers = self._ledger.fleet.workers
        is_alone = self._ledger.members == 0
        return [worker for worker in workers if is_alone or worker.presence is not None]

    def figures(self) -> Figures:
        """Return how it stands here, without what was done lately."""
        free, contexts = 0, dict[str, int]()
        labelled: dict[str, dict[str, int]] = {}
        for worker in self._ledger.fleet.workers:
            if not _is_there(worker) or worker.id in self._leaving:
                continue
            if worker.is_free:
                free += worker.capacity - len(worker.leases)
            for known in (contexts, *(labelled.setdefault(x, {}) for x in worker.labels)):
                _add_models(known, worker)
        waiting = sum(1 for _ in islice(self._ledger.queue.ready(), _LOOKED_AT_MOST))
        room = free - waiting
        return Figures(waiting=waiting, room=room, contexts=contexts, labelled=labelled)

    # ------------------------------------------------------------ boards

    def _ask_for_what_is_held(self, worker: WorkerId) -> None:
        command = WorkerCommand(id=str(worker), op=WorkerOp.REPORT)
        self._ledger.send(topics.COMMAND, (worker,), command)

    def _hold_back(self, worker_id: WorkerId, *, held: bool) -> None:
        worker = self._ledger.fleet.find(worker_id)
        if worker is not None:
            self._ledger.fleet.hold_back(worker, held=held)

    def _let_go(self, worker: Worker) -> None:
        """Know of a board only what it can do: another member's jobs may be of interest here."""
        fleet, info = self._ledger.fleet, worker.info
        self._roster.on_presence(PresenceChanged(worker=worker.id, presence=None))
        if info is not None:
            fleet.set_info(fleet.see(worker.id, self._ledger.now_ms), info)
        self._leaving.discard(worker.id)
        self._ledger.emit(ReleaseWorker(worker=worker.id))

    # ------------------------------------------------------------ jobs

    def _may_go_on(self, job: Job, acquired: set[WorkerId]) -> bool:
        """Whether the lease of an acquired job can be kept: only with a board that is ours."""
        if job.result is not None or job.status not in LEASED or job.worker is None:
            return True
        worker = self._ledger.fleet.find(job.worker)
        if worker is None or not (job.worker in acquired or _is_there(worker)):
            return False
        return len(worker.leases) < worker.capacity

    def _may_go(self, job: Job) -> bool:
        """Whether a waiting job is bound to nothing here, and has waited for long enough."""
        ledger, key = self._ledger, job.key
        is_bound = job.part is not None or job.parts > 0 or job.device.startswith(LOCAL_PREFIX)
        stays = self._stays_until_ms.get(key, job.begins_at_ms + _WAITED_MS)
        return not is_bound and stays <= ledger.now_ms and not self._coalescer.is_followed(job)

    @staticmethod
    def _taker_of(job: Job, offers: Sequence[Offer], left: dict[MemberId, int]) -> MemberId | None:
        need = need_of(job)
        can = (o.member for o in offers if left[o.member] > 0 and o.figures.serves(need))
        return next(can, None)

    def _hand_over(self, job: Job, member: MemberId) -> None:
        self._ledger.detach(job)
        self._coalescer.leave(job)
        self._ledger.drop(job)
        self._ledger.emit(HandOver(job=job.key, member=member))


def _add_models(contexts: dict[str, int], worker: Worker) -> None:
    """Note the contexts in which a worker answers, where no other one has a larger one."""
    for model in worker.info.models if worker.info else ():
        for name in (ANY_MODEL, model.name):
            contexts[name] = max(contexts.get(name, 0), model.context_tokens)


def _is_there(worker: Worker) -> bool:
    return worker.presence is not None and worker.presence.status is not PresenceStatus.OFFLINE
