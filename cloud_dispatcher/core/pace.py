"""How fast a worker has been lately, learned from its answers."""

from __future__ import annotations

from typing import Final

READ_COST: Final = 0.15
"""Reading a prompt token over writing one. Measured: 6.6 times as fast on one thread."""
STARTED_AFTER_MS: Final = 250
"""Workers say `started` so long after they got an attempt."""

_SLOWER_A_JOB: Final = 1 / 3
_LEAST_GAIN: Final = 0.15
_FAR: Final = 8.0
"""One observation counts as no further off than so many times what is known."""


def work_tokens(prompt_tokens: float, answer_tokens: float) -> float:
    """Return a job's work in tokens written."""
    return answer_tokens + READ_COST * prompt_tokens


def slowdown(jobs: int) -> float:
    """Return how many times longer each of so many jobs takes on one board than one alone.

    Measured with 1, 2, 4 and 8 jobs: 1, 1.3, 2.0 and 3.8 times as long.
    """
    return 1.0 + _SLOWER_A_JOB * (jobs - 1)


class _Learned:
    """A positive quantity: a geometric mean of what was seen, later observations weighing more."""

    __slots__ = ("_seen", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self._seen = 1

    def see(self, value: float) -> None:
        self._seen += 1
        gain = max(_LEAST_GAIN, 1.0 / self._seen)
        far = min(max(value / self.value, 1.0 / _FAR), _FAR)
        self.value *= far**gain


class Pace:
    """What is known of one worker's speed: what it declares until it was seen to work.

    Attributes:
        declared_ms: Milliseconds a token of a job alone, by its own measurement; None: it has none.
        model: Answers jobs that name none; None: it has none at all.
        link_ms: There and back.
        strain: What its answers took over what they should have by its own word, waiting on the
            board included; 1 without such a word.
        is_hot: It says that it is throttled. What it is worth then is learned apart.
    """

    __slots__ = ("_link", "_paces", "_strain", "declared_ms", "is_hot", "model")

    def __init__(self) -> None:
        self.declared_ms: float | None = None
        self.model: str | None = None
        self.is_hot = False
        self._paces: dict[tuple[str, bool], _Learned] = {}
        self._link = _Learned(10.0)
        self._strain = _Learned(1.0)

    @property
    def link_ms(self) -> float:
        """Milliseconds there and back."""
        return self._link.value

    @property
    def strain(self) -> float:
        """What its answers took over what they should have."""
        return self._strain.value

    def declare(self, model: str | None, declared_ms: float | None) -> None:
        """Take note of a worker's own word, which may be another one than before."""
        if self.declared_ms is not None and declared_ms is not None:
            self._strain.value *= self.declared_ms / declared_ms
        self.model, self.declared_ms = model, declared_ms

    def ms_per_token(self, model: str | None, *, unknown_ms: float) -> float:
        """Return milliseconds a token of a job alone; `unknown_ms` where nothing is known.

        Until it was seen to work while it is hot, it counts as quick as it is otherwise.
        """
        name = model or self.model or ""
        found = self._paces.get((name, self.is_hot)) or self._paces.get((name, False))
        if found is not None:
            return found.value
        return unknown_ms if self.declared_ms is None else self.declared_ms

    def started(self, delay_ms: int) -> None:
        """Learn from the span between an assignment and the word that it was begun."""
        self._link.see(max(delay_ms - STARTED_AFTER_MS, 1))

    def answered(self, model: str, span_ms: int, tokens: float, *, jobs: int, slots: int) -> None:
        """Learn from an answer.

        Args:
            model: That answered.
            span_ms: From the assignment to the answer.
            tokens: See `work_tokens`.
            jobs: That the worker held meanwhile, this one included.
            slots: That it works on at once; with more jobs than that this one may have waited.
        """
        busy_ms = max(span_ms - self.link_ms, 1.0)
        alone_ms = busy_ms / (tokens * slowdown(min(jobs, slots)))
        if self.declared_ms is not None:
            self._strain.see(alone_ms / self.declared_ms)
        if jobs > slots:
            return
        key = (model, self.is_hot)
        known = self._paces.get(key)
        if known is None:
            begin_ms = self.ms_per_token(model, unknown_ms=alone_ms)
            known = self._paces[key] = _Learned(begin_ms)
        known.see(alone_ms)
