"""Several dispatchers at once: who they are to each other, and what each one's share is.

Pure. Every member gets the same list from the store, oldest first, and draws the same conclusions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NewType

import msgspec

from cloud_dispatcher.core.queue import Need
from fleet_protocol.messages import FleetSummary

MemberId = NewType("MemberId", str)
"""Names one run of one dispatcher: what is given to it is given to nobody after it."""

ANY_MODEL: Final = ""
"""Among `Figures.contexts`: the largest context of all models."""


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How it stands with a member, as it says with each beat.

    Attributes:
        waiting: Jobs that none of its free workers could take.
        room: Jobs that it could begin within a second: its free slots, and as many as it finished
            in the last one, less what waits.
        contexts: The largest context, by model, of its workers that are there.
        labelled: The same of those with a label, by label.
        summary: Its part of the overview.
        linked: Whether the broker is there for it.
    """

    waiting: int = 0
    room: int = 0
    contexts: dict[str, int] = {}
    labelled: dict[str, dict[str, int]] = {}
    summary: FleetSummary | None = None
    linked: bool = True

    def serves(self, need: Need) -> bool:
        """Whether one of its workers answers such a job."""
        contexts = self.contexts if need.label is None else self.labelled.get(need.label, {})
        return need.tokens <= contexts.get(need.model or ANY_MODEL, -1)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A dispatcher that holds its lease.

    Attributes:
        name: As its settings call it; it is the same in its next run.
    """

    id: MemberId
    name: str
    figures: Figures = msgspec.field(default_factory=Figures)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs another member would begin at once."""

    member: MemberId
    room: int
    figures: Figures


def leads(members: Sequence[Member], me: MemberId) -> bool:
    """Tell whether we speak for all: the oldest member does."""
    return bool(members) and members[0].id == me


def share_of(members: Sequence[Member], me: MemberId, workers: int) -> int:
    """Return how many workers are ours: as many as everybody's, one of the rest to the oldest."""
    for rank, member in enumerate(members):
        if member.id == me:
            each, rest = divmod(workers, len(members))
            return each + (rank < rest)
    return 0


def offers_to(members: Sequence[Member], me: MemberId) -> tuple[Offer, ...]:
    """Return what others would take off us: their room, shared among all who have too much."""
    givers = [m.id for m in members if m.figures.waiting > 0 and m.figures.room <= 0]
    if me not in givers:
        givers.append(me)
    rank = sorted(givers).index(me)
    found = list[Offer]()
    for member in members:
        each, rest = divmod(max(member.figures.room, 0), len(givers))
        room = each + (rank < rest)
        if room and member.id != me:
            found.append(Offer(member=member.id, room=room, figures=member.figures))
    return tuple(found)
