"""What SIGTERM and Ctrl-C do to a worker, from its first line to its last."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final, Self

_NUMBERS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Takes the signals of a process while it is entered; one that was ignored before as well.

    While nothing runs that has to be drained, a signal ends the program at once, wherever it is:
    by `KeyboardInterrupt`, or in a loop by cancelling the task that watches. Afterwards the first
    signal drains, and a further one ends at once.

    Attributes:
        last: The signal that came last; None: none did.
    """

    def __init__(self) -> None:
        self.last: signal.Signals | None = None
        self._drain: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _NUMBERS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self) -> None:
        """Let the running loop take the signals from now on; they cancel the task that calls."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise AssertionError("called from a task")
        for number in _NUMBERS:
            loop.add_signal_handler(number, self._on_signal_in_loop, number, task)

    def drain_with(self, drain: Callable[[], None]) -> None:
        """Name what the next signal calls instead of ending at once."""
        self._drain = drain

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.last = signal.Signals(number)
        raise KeyboardInterrupt

    def _on_signal_in_loop(self, number: int, task: asyncio.Task[object]) -> None:
        self.last = signal.Signals(number)
        drain, self._drain = self._drain, None
        if drain is None:
            task.cancel()
        else:
            drain()
