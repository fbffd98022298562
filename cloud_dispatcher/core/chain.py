"""Which endpoint of the chain answers next. Pure: what is known of each comes in as a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

SPILL_MS: Final = 1_000
"""A call waits so long for its account; where it would take longer, a backup is asked."""


class Sight(NamedTuple):
    """One endpoint at one instant.

    Attributes:
        open_ms: How long its breaker lets nothing through; 0: it does.
        wait_ms: How long its account takes no call: Retry-After, or our own rate; 0: it does.
        is_full: As many calls as its account allows are being answered.
        is_out: Nothing more is to be asked of it for this request.
    """

    open_ms: int = 0
    wait_ms: int = 0
    is_full: bool = False
    is_out: bool = False


def choose(sights: Sequence[Sight], *, patient: bool) -> int | None:
    """Return the place of the endpoint to ask now; None: there is none.

    The first one that answers at once wins, for the chain is in order of preference. If none does,
    a patient call queues where the wait is shortest; no call waits for a breaker.
    """
    usable = [i for i, sight in enumerate(sights) if not sight.is_out and sight.open_ms == 0]
    for i in usable:
        if sights[i].wait_ms <= SPILL_MS and not sights[i].is_full:
            return i
    if not patient or not usable:
        return None
    return min(usable, key=lambda i: (sights[i].wait_ms, sights[i].is_full, i))


def pause_ms(sights: Sequence[Sight]) -> int | None:
    """Return how long until any endpoint takes a call, 0: now; None: none is left to ask."""
    spans = [sight.open_ms or sight.wait_ms for sight in sights if not sight.is_out]
    return min(spans) if spans else None


def is_closed(sights: Sequence[Sight]) -> bool:
    """Whether every endpoint that is left has an open breaker."""
    return all(sight.open_ms > 0 for sight in sights if not sight.is_out)


def patience_ms(remaining_ms: int, *, has_other: bool) -> int:
    """Return how long a call may be without content: half of what is left, if others could go on.

    The whole of it otherwise: hanging up on the only endpoint loses one's place in its queue.
    """
    return max(remaining_ms // 2, 1) if has_other else remaining_ms
