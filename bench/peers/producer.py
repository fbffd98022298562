"""The producer of a peer: a process of its own that is told when to put jobs into a queue.

It reads `{"seconds": 5, "window": 256, "text": "..."}` a line and answers each with one line: how
long that took and what each job took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

Played = tuple[float, list[float]]


def serve(send: Callable[[str], Any], wait: Callable[[Any], object]) -> None:
    """Answer requests until the input ends.

    Args:
        send: Puts a job into the queue and returns what its result is waited for with.
        wait: Waits for a result.
    """

    def play(seconds: float, window: int, text: str) -> Played:
        waiting: deque[tuple[Any, float]] = deque()
        latencies: list[float] = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            sent_at = time.perf_counter()
            waiting.append((send(text), sent_at))
            if len(waiting) >= window:
                latencies.append(_waited(wait, *waiting.popleft()))
        latencies += [_waited(wait, *one) for one in waiting]
        return time.perf_counter() - begun, latencies

    for line in sys.stdin:
        _answer(play(**json.loads(line)))


def serve_async(
    start: Callable[[], Awaitable[Callable[[float, int, str], Awaitable[Played]]]],
) -> None:
    """The same for a client that has a loop of its own: `start` returns what plays a request."""

    async def main() -> None:
        play = await start()
        while line := await asyncio.to_thread(sys.stdin.readline):
            _answer(await play(**json.loads(line)))

    asyncio.run(main())


def _waited(wait: Callable[[Any], object], handle: Any, sent_at: float) -> float:
    wait(handle)
    return time.perf_counter() - sent_at


def _answer(played: Played) -> None:
    print(json.dumps(played), flush=True)
