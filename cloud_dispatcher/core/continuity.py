"""What a device has seen of an answer, however many calls it takes to get the whole."""

from __future__ import annotations


class Continuity:
    """Lets an answer go on where an earlier call broke off, and never start over.

    A call that says the same again is swallowed up to where the device is, and goes on from there.
    One that says something else is not shown at all: the result is whole, and supersedes.

    Attributes:
        shown: The text that the device has seen.
    """

    def __init__(self) -> None:
        self.shown = ""
        self._said = ""

    def restart(self) -> None:
        """Another call begins."""
        self._said = ""

    def grow(self, piece: str) -> str:
        """Take a piece of the call at hand; return what the device is to see of it, maybe ""."""
        self._said += piece
        if not self._said.startswith(self.shown):
            return ""
        fresh = self._said[len(self.shown) :]
        self.shown = self._said
        return fresh
