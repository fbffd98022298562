"""What workers say of themselves: presence, abilities, heartbeats, what they hold."""

from __future__ import annotations

from cloud_dispatcher.core.edge_lane import EdgeLane
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
    PresenceStatus,
    Settled,
    WorkerId,
)


class Roster:
    """Keeps the fleet as its workers describe it, and takes jobs back from those that are gone."""

    def __init__(self, ledger: Ledger, edge: EdgeLane) -> None:
        self._ledger = ledger
        self._edge = edge

    def on_presence(self, event: PresenceChanged) -> None:
        """A worker came, left or was removed. The will of an earlier boot changes nothing."""
        presence, fleet = event.presence, self._ledger.fleet
        if presence is not None and presence.status is not PresenceStatus.OFFLINE:
            fleet.set_presence(self._ledger.heard(event.worker), presence)
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
        """A heartbeat."""
        self._ledger.fleet.set_state(self._ledger.heard(event.worker), event.state)

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

        Not what was sent just now: that assignment and this report may have crossed on the wire.
        It is left to its lease; the worker's `started` will say that it arrived.
        """
        settled_before_ms = self._ledger.now_ms - self._ledger.settings.held_grace_ms
        holds = {(ref.job, ref.attempt) for ref in (*held.running, *held.finished)}
        for key, sent_at_ms in tuple(worker.leases.items()):
            job = self._ledger.jobs[key]
            if (key, job.attempt) not in holds and sent_at_ms <= settled_before_ms:
                message = "the worker lost the assignment"
                self._edge.give_back(job, lapsed=False, code="worker_lost", message=message)


def _key(ref: AttemptRef) -> JobKey:
    return JobKey(ref.job)
