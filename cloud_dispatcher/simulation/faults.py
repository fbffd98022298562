"""What goes wrong with which board when: drawn beforehand, so the same for every policy."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from random import Random

import msgspec

from cloud_dispatcher.simulation.board import Claim
from cloud_dispatcher.simulation.scenario import Faults, Spells


class Trouble(StrEnum):
    """What comes over a board."""

    THROTTLING = "throttling"
    BOARD_LOSS = "board_loss"
    LINK_LOSS = "link_loss"
    FAILING = "failing"


class Turn(msgspec.Struct, frozen=True):
    """A trouble begins, or ends."""

    at_ms: int
    trouble: Trouble
    begins: bool


def claim_of(faults: Faults, random: Random) -> Claim:
    """Draw how honest and how fresh a board's word on itself is."""
    is_wrong, is_bold = random.random() < faults.wrong_share, random.random() < 0.5
    is_stale = random.random() < faults.stale_share
    wrong = faults.wrong_factor if is_bold else 1 / faults.wrong_factor
    return Claim(wrong if is_wrong else 1.0, round(faults.stale_s * 1_000) if is_stale else 0)


def turns_of(faults: Faults, random: Random, *, until_ms: int) -> list[Turn]:
    """Draw all that comes over one board; what begins before `until_ms` also ends, if later."""
    return [
        turn
        for trouble in Trouble
        for turn in _turns(trouble, getattr(faults, trouble.value), random, until_ms)
    ]


def _turns(trouble: Trouble, spells: Spells, random: Random, until_ms: int) -> Iterator[Turn]:
    if random.random() >= spells.share:
        return
    at_ms = 0.0
    while True:
        at_ms += random.expovariate(1 / spells.every_s) * 1_000
        if at_ms >= until_ms:
            return
        yield Turn(round(at_ms), trouble, begins=True)
        at_ms += 1 + random.expovariate(1 / spells.span_s) * 1_000
        yield Turn(round(at_ms), trouble, begins=False)
