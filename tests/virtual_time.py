"""An event loop whose clock jumps to the next timer as soon as nothing is left to do.

Sockets on loopback within the process work: what was sent is there before the clock moves. Threads
of the loop's executor are waited for in real time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_SETTLE_S = 0.005
"""Real time that bytes on loopback may take from one end to the other."""
_THREAD_S = 0.05
"""Real time between two looks at a thread that works for the loop."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; if nothing is, let `timeout` seconds pass at once."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.threads:  # real work: the clock stands still meanwhile
            return super().select(_THREAD_S)
        ready = super().select(_SETTLE_S if timeout is not None else None)
        if not ready and timeout is not None:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time: a minute of sleep takes milliseconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return seconds of virtual time."""
        return self._jumping.now_s

    def run_in_executor(  # type: ignore[override]  # the stub's types of *args are past us
        self, executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        """Run it in a thread, and let no time pass until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self._jumping.threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _future: asyncio.Future[Any]) -> None:
        self._jumping.threads -= 1


def run_virtually(work: Coroutine[Any, Any, _T]) -> _T:
    """Run it to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
