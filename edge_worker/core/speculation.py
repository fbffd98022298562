"""Guessing the next tokens of an answer from what was already said, and when guessing pays.

Answers that extract, rewrite or correct repeat long parts of their prompt. The tokens that followed
the same few tokens before are proposed; the model checks all of them in one run, and only what it
would have chosen itself is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_MATCH = 3
SHORTEST_MATCH = 2
FIRST_DRAFT_TOKENS = 3
LEAST_ACCEPTED_SHARE = 0.35
"""Below it, checking costs more than it saves: a checked token costs about a third of a step."""
SHORTEST_PAUSE_TOKENS = 8
LONGEST_PAUSE_TOKENS = 64
_MEMORY = 0.7
"""Weight of the past in the running share of accepted tokens."""


class PromptLookup:
    """Finds what followed the last few tokens where they occurred before."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token of prompt or answer."""
        tokens = self._tokens
        # Only now does something follow the tokens before it.
        for size in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
            if len(tokens) >= size:
                self._after[tuple(tokens[-size:])] = len(tokens)
        tokens.append(token)

    def draft(self, limit: int) -> tuple[int, ...]:
        """Return up to `limit` tokens that may come next; empty if the end is new.

        The longest match counts, of equal ones the last.
        """
        tokens = self._tokens
        for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            start = self._after.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if start is not None:
                return tuple(tokens[start : start + limit])
        return ()


class DraftPace:
    """How many tokens to guess next, from how the last guesses went.

    A good guess makes the next one longer, a bad one shorter; after several bad ones there is a
    pause, longer each time.
    """

    def __init__(self, *, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._length = min(FIRST_DRAFT_TOKENS, most_tokens)
        self._share = 2 * LEAST_ACCEPTED_SHARE
        self._pause_tokens = SHORTEST_PAUSE_TOKENS
        self._wait_tokens = 0

    @property
    def length(self) -> int:
        """Most tokens to guess now; 0 during a pause."""
        return 0 if self._wait_tokens > 0 else self._length

    def pass_token(self) -> None:
        """Count a token that was generated without a guess."""
        self._wait_tokens = max(0, self._wait_tokens - 1)

    def record(self, *, drafted: int, accepted: int) -> None:
        """Count a guess of `drafted` tokens, the first `accepted` of which were right."""
        self._share = _MEMORY * self._share + (1 - _MEMORY) * accepted / drafted
        if accepted == drafted:
            self._length = min(2 * self._length, self._most_tokens)
        else:
            self._length = min(max(accepted + 1, SHORTEST_MATCH), self._most_tokens)
        if self._share >= LEAST_ACCEPTED_SHARE:
            self._pause_tokens = SHORTEST_PAUSE_TOKENS
            return
        self._wait_tokens = self._pause_tokens
        self._pause_tokens = min(2 * self._pause_tokens, LONGEST_PAUSE_TOKENS)
        self._share = LEAST_ACCEPTED_SHARE
