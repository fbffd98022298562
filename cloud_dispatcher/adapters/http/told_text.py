"""What of a growing answer may be told to a client that cannot take anything back. Pure."""

from __future__ import annotations

import msgspec

from fleet_protocol.messages import TokenChunk


class BrokenStreamError(Exception):
    """The answer is not what was told so far goes on to: another attempt answered otherwise."""


class Told(msgspec.Struct, frozen=True):
    """Text to append.

    Attributes:
        starts_over: What was told before is void; only those hear it who asked for drafts.
    """

    text: str
    starts_over: bool = False


class ToldText:
    """Text that grows by attempts, each of which may be given up for another one.

    Args:
        drafts: The client takes back what a chunk tells it to: it is told everything at once.
            Otherwise it is told what will stay alone, and the rest with the result.
    """

    def __init__(self, *, drafts: bool) -> None:
        self._drafts = drafts
        self._told = ""
        self._attempt = ""
        self._next = 0

    def grow(self, chunk: TokenChunk, *, stays: bool) -> Told | None:
        """Take a chunk; return what is to be told of it now.

        `stays`: as far as one can tell, the attempt will not be given up for another's answer.
        """
        if chunk.i == 0:
            self._attempt, self._next = "", 0
        if chunk.i != self._next:
            return None  # One was lost: the result has it all.
        self._attempt += chunk.t
        self._next += 1
        if not (stays or self._drafts):
            return None
        return self._tell(self._attempt)

    def finish(self, text: str) -> Told | None:
        """Take the whole answer; return what is still to be told.

        Raises:
            BrokenStreamError: Something else was told, and cannot be taken back.
        """
        if self._told.rstrip() == text.rstrip():
            return None
        if text.startswith(self._told):
            return self._tell(text)
        if not self._drafts:
            raise BrokenStreamError
        return Told(text, starts_over=True)

    def _tell(self, text: str) -> Told | None:
        if text.startswith(self._told):
            fresh = text[len(self._told) :]
            self._told = text
            return Told(fresh) if fresh else None
        if self._told.startswith(text) or not self._drafts:
            return None  # It says again what was told; or the result must decide.
        self._told = text
        return Told(text, starts_over=True)
