"""Which workers are whose: what is heard of all of them, and which are ours.

Every member hears who is there and what it can do; of what a worker says of its jobs only its owner
may take note, for whoever does not know an attempt calls it off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from cloud_dispatcher.core.events import (
    AnyEvent,
    Board,
    DoneReceived,
    EscalationReceived,
    FailureReceived,
    HeldReceived,
    InfoReceived,
    PresenceChanged,
    ProgressReceived,
    StartReceived,
    StateReceived,
    TokensReceived,
)
from cloud_dispatcher.core.members import Member, MemberId, leads, share_of
from fleet_protocol.messages import Presence, PresenceStatus, WorkerId, WorkerInfo

_OWNERS_ALONE: Final = (
    StateReceived,
    HeldReceived,
    StartReceived,
    ProgressReceived,
    TokensReceived,
    DoneReceived,
    FailureReceived,
    EscalationReceived,
)


class Boards:
    """The whole fleet as one member sees it.

    Attributes:
        mine: The store says that these are ours.
        gone: Ours that were removed from the fleet, to be released.
    """

    def __init__(self) -> None:
        self.mine: set[WorkerId] = set()
        self.gone: set[WorkerId] = set()
        self._presence: dict[WorkerId, Presence] = {}
        self._info: dict[WorkerId, WorkerInfo] = {}

    def hear(self, event: AnyEvent) -> AnyEvent | None:
        """Return what the engine is to hear of; None: it is no business of ours."""
        if isinstance(event, PresenceChanged):
            return self._hear_presence(event)
        if isinstance(event, InfoReceived):
            if event.info is None:
                self._info.pop(event.worker, None)
            else:
                self._info[event.worker] = event.info
            return event  # What others' boards can do decides what is refused here.
        if isinstance(event, _OWNERS_ALONE) and event.worker not in self.mine:
            return None
        return event

    def wanted(self, members: Sequence[Member], me: MemberId) -> tuple[list[WorkerId], int]:
        """Return workers that are not ours, and how many of them should be.

        The oldest member also looks after those that are away.
        """
        there = self._there()
        missing = share_of(members, me, len(there)) - len(there & self.mine)
        wanted = sorted(there - self.mine) if missing > 0 else []
        if not leads(members, me):
            return wanted, max(missing, 0)
        away = sorted(self._presence.keys() - there - self.mine)
        return wanted + away, max(missing, 0) + len(away)

    def surplus(self, members: Sequence[Member], me: MemberId) -> int:
        """Return how many of our workers are another member's share."""
        there = self._there()
        return max(len(there & self.mine) - share_of(members, me, len(there)), 0)

    def acquire(self, workers: Collection[WorkerId]) -> tuple[Board, ...]:
        """Let workers be ours, and return what is known of them."""
        self.mine |= set(workers)
        return tuple(
            Board(worker=worker, presence=self._presence[worker], info=self._info.get(worker))
            for worker in sorted(workers)
            if worker in self._presence
        )

    def release(self, workers: Collection[WorkerId]) -> None:
        """Let workers be ours no more."""
        self.mine -= set(workers)
        self.gone -= set(workers)

    def _hear_presence(self, event: PresenceChanged) -> AnyEvent | None:
        worker, presence = event.worker, event.presence
        before = self._presence.get(worker)
        if presence is None:
            self._presence.pop(worker, None)
            if worker in self.mine:
                self.gone.add(worker)
        elif not (
            presence.status is PresenceStatus.OFFLINE
            and before is not None
            and before.boot != presence.boot
        ):
            # The will of an earlier boot says nothing of this one.
            self._presence[worker] = presence
        return event if worker in self.mine else None

    def _there(self) -> set[WorkerId]:
        offline = PresenceStatus.OFFLINE
        return {w for w, presence in self._presence.items() if presence.status is not offline}
