"""What workers say of themselves: presence, abilities, heartbeats, what they hold."""

from __future__ import annotations

from cloud_dispatcher.core.edge_lane import WORKER_LOST, EdgeLane
from cloud_dispatcher.core.events import (
    HeldReceived,
    InfoReceived,
    PresenceChanged,
    StateReceived,
)
from cloud_dispatcher.core.fleet import Worker
from cloud_dispatcher.core.ledger import Ledger
from fleet_protocol import topics
from fleet_protocol.messages import (
    AttemptRef,
    HeldJobs,
    JobKey,
    JobStatus,
    PresenceStatus,
    Settled,
    WorkerCommand,
    WorkerId,
    WorkerOp,
)

_STRANGE_MS = 10_000
"""What a worker says of itself is retained, and there before its second heartbeat; a worker that
still beats after this span, and is not known to be there, is asked, and again after each span."""


class Roster:
    """Keeps the fleet as its workers describe it, and takes jobs back from those that are gone."""

    def __init__(self, ledger: Ledger, edge: EdgeLane) -> None:
        self._ledger = ledger
        self._edge = edge
        self._strange_since_ms: dict[WorkerId, int] = {}

    def on_presence(self, event: PresenceChanged) -> None:
        """A worker came, left or was removed. The will of an earlier boot changes nothing."""
        presence, fleet = event.presence, self._ledger.fleet
        if presence is not None and presence.status is not PresenceStatus.OFFLINE:
            fleet.set_presence(self._ledger.heard(event.worker), presence)
            self._strange_since_ms.pop(event.worker, None)
            return
        worker = fleet.find(event.worker)
        if presence is None:
            if worker is not None:
                self._take_back_all(worker)
                fleet.remove(event.worker)
            self._ledger.worker_alarms.clear(event.worker)
            return
        if worker is None:
            worker = fleet.see(event.worker, self._ledger.now_ms)
        if worker.presence is None or worker.presence.boot == presence.boot:
            fleet.set_presence(worker, presence)
            self._ledger.worker_alarms.clear(event.worker)
            self._take_back_all(worker)

    def on_info(self, event: InfoReceived) -> None:
        """A worker said what it is; retained, so it is no sign of life of its own."""
        fleet = self._ledger.fleet
        worker = fleet.find(event.worker)
        if worker is None and event.info is not None:
            worker = fleet.see(event.worker, self._ledger.now_ms)
        if worker is not None:
            fleet.set_info(worker, event.info)

    def on_state(self, event: StateReceived) -> None:
        """A heartbeat: whoever says it is there, whatever else was said, or got lost."""
        worker = self._ledger.heard(event.worker)
        self._ledger.fleet.set_state(worker, event.state)
        if worker.info is None or worker.status is PresenceStatus.OFFLINE:
            self._ask_who(worker.id)

    def on_held(self, event: HeldReceived) -> None:
        """Compare what a worker holds with what it was given, and bring both together.

        A report of another boot than the one that is here says nothing about this one.
        """
        worker = self._ledger.heard(event.worker)
        if worker.presence is not None and worker.presence.boot != event.held.boot:
            return
        self._take_back_missing(worker, event.held)
        for ref in event.held.running:
            if self._edge.resume(worker, _key(ref), ref.attempt) is None:
                self._edge.scold(worker.id, _key(ref), ref.attempt)
        closed = [ref for ref in event.held.finished if not self._keeps(worker, ref)]
        if closed:
            self._ledger.send(topics.SETTLED, (worker.id,), Settled(jobs=tuple(closed)))

    def silent(self, worker_id: WorkerId) -> None:
        """Treat a worker that was not heard of for too long as offline."""
        worker = self._ledger.fleet.find(worker_id)
        if worker is None:
            return
        if not self._ledger.is_linked:
            self._ledger.heard(worker_id)
            return
        self._ledger.fleet.set_silent(worker)
        self._take_back_all(worker)

    def _ask_who(self, worker: WorkerId) -> None:
        """Have a worker say again that it is there, what it is and what it holds.

        A broker whose queue for us was full dropped what it retained, without a word to anybody; or
        a will came late, by another way.
        """
        now_ms = self._ledger.now_ms
        since_ms = self._strange_since_ms.setdefault(worker, now_ms)
        if now_ms - since_ms >= _STRANGE_MS:
            self._strange_since_ms[worker] = now_ms
            command = WorkerCommand(id=worker, op=WorkerOp.REPORT)
            self._ledger.send(topics.COMMAND, (worker,), command)

    def _keeps(self, worker: Worker, ref: AttemptRef) -> bool:
        """Whether the outcome of this attempt, which is on its way, will count."""
        job = self._edge.current(worker.id, _key(ref), ref.attempt)
        if job is not None and job.worker is not None:
            self._ledger.renew(job, job.status)
        return job is not None

    def _take_back_all(self, worker: Worker) -> None:
        """The worker may come back with the work done, so these leases count as lapsed."""
        for key in tuple(worker.leases):
            self._edge.give_back(self._ledger.jobs[key], lapsed=True)

    def _take_back_missing(self, worker: Worker, held: HeldJobs) -> None:
        """Take back what the worker does not know of.

        Not what was sent just now: that assignment and this report may have crossed on the wire, or
        a broker that forgot had it while the worker was not back yet. It is sent again, which does
        no harm where it did arrive.
        """
        settled_before_ms = self._ledger.now_ms - self._ledger.settings.held_grace_ms
        holds = {(ref.job, ref.attempt) for ref in (*held.running, *held.finished)}
        for key, sent_at_ms in tuple(worker.leases.items()):
            job = self._ledger.jobs[key]
            if (key, job.attempt) in holds:
                continue
            if sent_at_ms <= settled_before_ms:
                message = "the worker lost the assignment"
                self._edge.give_back(job, lapsed=False, code=WORKER_LOST, message=message)
            elif job.status is JobStatus.ASSIGNED:
                self._edge.send_assignment(job, worker)


def _key(ref: AttemptRef) -> JobKey:
    return JobKey(ref.job)
