"""Whether an answer can be ready in time: how fast this board is, against a job's deadline.

What is reckoned here is what an answer usually takes at best: a job that leaves for it would more
likely than not have been late. How long an answer will be, nobody knows before it is there.
`max_tokens` says little, as it is a bound that hardly any answer comes near: the length that half
of the board's recent answers had is taken, and none at all until there were some.
"""

from __future__ import annotations

from collections import Counter, deque
from statistics import median_low
from typing import Final

from edge_worker.core.attempt import HeldJob
from edge_worker.core.generation import Finished
from fleet_protocol.messages import Benchmark
from fleet_protocol.routing import Timing

REMEMBERED: Final = 32
"""So many answers say what is usual now, even where the kind of jobs changes within a day."""
LEAST_SEEN: Final = 8
"""Fewer say nothing of what is usual."""


class Pace:
    """Knows how long answers usually are here, and what that takes."""

    def __init__(self) -> None:
        self._lengths: deque[int] = deque(maxlen=REMEMBERED)

    def note(self, finished: Finished) -> None:
        """Take the length of an answer into account, unless it is only the beginning of one."""
        if not finished.gave_up:
            self._lengths.append(finished.tokens)

    @property
    def usual_tokens(self) -> int:
        """The length that half of the recent answers had at most; 1 if there are too few."""
        return 1 if len(self._lengths) < LEAST_SEEN else max(1, median_low(self._lengths))

    def timing(
        self,
        held: HeldJob,
        *,
        ahead: int,
        slots: int,
        speed: Benchmark | None,
        now_ms: int,
    ) -> Timing | None:
        """Return what an attempt takes from now on; None: no deadline, or an unknown speed.

        Args:
            held: Its prompt is counted.
            ahead: How many the engine takes before it, see `Line`.
            slots: How many are worked on at once.
            speed: Of one request alone: among others each is slower.
            now_ms: By the worker's own clock.
        """
        deadline_at_ms = held.deadline_at_ms
        if deadline_at_ms is None or speed is None:
            return None
        return self.reckon(
            unread_tokens=held.prompt_tokens - held.kept_tokens,
            max_tokens=held.spooled.assignment.generation.max_tokens,
            speed=speed,
            left_ms=deadline_at_ms - now_ms,
            turns=max(0, ahead + 1 - slots) / max(1, slots),
        )

    def reckon(
        self,
        *,
        unread_tokens: int,
        max_tokens: int,
        speed: Benchmark,
        left_ms: float,
        turns: float = 0.0,
    ) -> Timing | None:
        """Return the same of a prompt with so much to read; None: the speed is unknown.

        Args:
            unread_tokens: Of the prompt.
            max_tokens: Of the answer.
            speed: Of one request alone.
            left_ms: Until the deadline.
            turns: Usual answers that each slot writes before, as if it were at full speed.
        """
        if min(speed.decode_tok_s, speed.prefill_tok_s) <= 0:
            return None
        usual, token_ms = self.usual_tokens, 1_000 / speed.decode_tok_s
        return Timing(
            waiting_ms=turns * usual * token_ms,
            reading_ms=unread_tokens * 1_000 / speed.prefill_tok_s,
            writing_ms=min(usual, max_tokens) * token_ms,
            left_ms=left_ms,
        )


class Line:
    """Who is in the engine's hands: at work, or waiting for a slot. Counted, not searched.

    Who has begun is not passed, and who waits only by a higher priority.
    """

    def __init__(self) -> None:
        self._at_work: set[str] = set()
        self._waiting: dict[str, int] = {}
        self._priorities: Counter[int] = Counter()

    def enter(self, held: HeldJob) -> None:
        """Let an attempt wait for a slot."""
        priority = held.spooled.assignment.priority
        self._waiting[held.id] = priority
        self._priorities[priority] += 1

    def begin(self, held: HeldJob) -> None:
        """An attempt has its first tokens."""
        if self._stop_waiting(held):
            self._at_work.add(held.id)

    def leave(self, held: HeldJob) -> None:
        """An attempt is through, or given up; of one that never entered: no effect."""
        if not self._stop_waiting(held):
            self._at_work.discard(held.id)

    def ahead_of(self, held: HeldJob) -> int:
        """Return how many are taken before an attempt that would enter now."""
        priority = held.spooled.assignment.priority
        waiting = sum(count for own, count in self._priorities.items() if own >= priority)
        return len(self._at_work) + waiting

    def _stop_waiting(self, held: HeldJob) -> bool:
        priority = self._waiting.pop(held.id, None)
        if priority is None:
            return False
        self._priorities[priority] -= 1
        return True
