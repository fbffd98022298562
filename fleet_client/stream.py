"""A growing answer, put together from chunks that may repeat, be missing or start over. Pure."""

from __future__ import annotations

from typing import Self

from fleet_protocol.messages import TokenChunk


class StreamPiece(str):
    """Text to append to what was shown so far.

    Attributes:
        starts_over: What was shown before came from an attempt that was given up (a board died, or
            the cloud took over) or was incomplete: throw it away and begin with this piece.
    """

    __slots__ = ("starts_over",)

    starts_over: bool

    def __new__(cls, text: str, *, starts_over: bool = False) -> Self:
        """Make a piece; a piece is a `str` in every other respect."""
        piece = super().__new__(cls, text)
        piece.starts_over = starts_over
        return piece


class TextStream:
    """Turns chunks into pieces whose joined text is always a true part of one attempt's answer.

    A chunk that was lost holds everything after it back until the result, which is authoritative:
    from the last piece that `starts_over` on, the pieces joined equal the result's text. An attempt
    that begins again with the same words is shown once.
    """

    def __init__(self) -> None:
        self._shown = ""
        self._attempt = ""
        self._next = 0

    def grow(self, chunk: TokenChunk) -> StreamPiece | None:
        """Take a chunk; return what is new to the reader, if anything."""
        if chunk.i == 0:
            self._attempt, self._next = "", 0
        if chunk.i != self._next:
            return None
        self._attempt += chunk.t
        self._next += 1
        return self._advance(self._attempt)

    def finish(self, text: str) -> StreamPiece | None:
        """Take the result's whole text; return what the reader still lacks of it."""
        if not text or self._shown.rstrip() == text.rstrip():
            return None
        if self._shown.startswith(text):
            return self._replace(text)
        return self._advance(text)

    def _advance(self, text: str) -> StreamPiece | None:
        if self._shown.startswith(text):
            return None
        if not text.startswith(self._shown):
            return self._replace(text)
        piece = StreamPiece(text[len(self._shown) :])
        self._shown = text
        return piece

    def _replace(self, text: str) -> StreamPiece:
        self._shown = text
        return StreamPiece(text, starts_over=True)
