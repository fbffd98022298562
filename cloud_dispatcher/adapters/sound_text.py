"""Text that can be written down, whatever a provider's JSON escapes. Pure.

A character beyond 16 bits is two escapes in JSON, and one of them is no character: Python reads it
all the same, and nothing that is stored or sent may have it. A provider that streams its tokens may
say the two in two pieces.
"""

from __future__ import annotations


def sound(text: str) -> str:
    """Return a text whose halves of characters are joined; one that is alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class SoundPieces:
    """The same for a text that comes in pieces."""

    def __init__(self) -> None:
        self._half = ""

    def take(self, piece: str) -> str:
        """Return what is whole by now; a first half at the end waits for what comes next."""
        piece = self._half + piece
        self._half = piece[-1:] if "\ud800" <= piece[-1:] <= "\udbff" else ""
        return sound(piece.removesuffix(self._half))
