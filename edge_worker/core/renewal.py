"""When a worker asks for its next certificate: decided by what the present one says.

It holds from `begin` to `end`. With a third of its life left, or a little earlier so that boards
enrolled together do not ask together, the worker asks, and asks again at growing intervals until it
is answered. The last third is the grace: a worker of 72 h manages a day without an answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

LEFT: Final = 1 / 3
"""Share of a certificate's life that is left when its successor is asked for at the latest."""
EARLIER: Final = 1 / 30
"""Share of its life by which that may be earlier, at random."""
FIRST_MS: Final = 60_000
MOST_MS: Final = 900_000


class Validity(msgspec.Struct, frozen=True):
    """From when to when a certificate holds, in UTC epoch milliseconds."""

    begin_at_ms: int
    end_at_ms: int


class CertificateState(StrEnum):
    """What there is to say of a certificate."""

    CLOCK_BEHIND = "clock_behind"
    """It does not hold yet. A board without a battery for its clock is waiting for the time."""
    FRESH = "fresh"
    DUE = "due"
    EXPIRED = "expired"
    """An open connection lasts, a new one is refused."""


class Renewal:
    """Decides when to ask. The clock is the board's own, and may step.

    Args:
        validity: Of the certificate there is.
        spread: 0..1, this board's own: moves its instants away from those of the others.
    """

    def __init__(self, validity: Validity, *, spread: float) -> None:
        self.validity = validity
        self._spread = spread
        self._tries = 0
        self._asked_at_ms: int | None = None

    @property
    def due_at_ms(self) -> int:
        """When the next certificate is asked for."""
        life_ms = self.validity.end_at_ms - self.validity.begin_at_ms
        return int(self.validity.end_at_ms - life_ms * (LEFT + EARLIER * self._spread))

    @property
    def pause_ms(self) -> int:
        """How long an answer is waited for before it is asked again: 1 to 15 minutes, spread."""
        pause_ms = min(MOST_MS, FIRST_MS * 2 ** min(self._tries - 1, 10)) if self._tries else 0
        return int(pause_ms * (1 + self._spread) / 2)

    def state(self, now_ms: int) -> CertificateState:
        """Return what there is to say of the certificate now."""
        if now_ms < self.validity.begin_at_ms:
            return CertificateState.CLOCK_BEHIND
        if now_ms >= self.validity.end_at_ms:
            return CertificateState.EXPIRED
        return CertificateState.DUE if now_ms >= self.due_at_ms else CertificateState.FRESH

    def should_ask(self, now_ms: int) -> bool:
        """Tell whether to ask now; whoever does calls `asked`.

        Also with an expired certificate: the connection may still be there.
        """
        if self.state(now_ms) not in {CertificateState.DUE, CertificateState.EXPIRED}:
            return False
        if self._asked_at_ms is None:
            return True
        # A clock that stepped back must not make it wait for what it has waited for.
        waited_ms = now_ms - self._asked_at_ms
        return waited_ms < 0 or waited_ms >= self.pause_ms

    def asked(self, now_ms: int) -> None:
        """Take note that it was asked for."""
        self._tries += 1
        self._asked_at_ms = now_ms

    def may_take(self, validity: Validity, now_ms: int) -> bool:
        """Tell whether a certificate may take the present one's place.

        One that does not hold takes the place of none that does: an authority whose clock is ahead
        would lock us out until it has come true.
        """
        return _holds(validity, now_ms) or not _holds(self.validity, now_ms)

    def renewed(self, validity: Validity) -> None:
        """Take note of the new certificate; the same one again is no reason to hurry."""
        if validity != self.validity:
            self._tries, self._asked_at_ms = 0, None
        self.validity = validity


def _holds(validity: Validity, now_ms: int) -> bool:
    return validity.begin_at_ms <= now_ms < validity.end_at_ms
