"""A peer of `bench/dispatch.py`: an echo task on Huey and Redis, results kept in Redis.

Huey takes a job off its list before it works on it: a killed worker loses it, whatever is set. Run
by `huey_consumer bench.peers.huey_echo.huey`, and as a script it is the producer; the Redis URL
comes from `BENCH_REDIS_URL`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from huey import RedisHuey

from bench.peers.producer import serve

_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")

# Told of a result by Redis: else it is looked for after pauses of a tenth of a second and more.
huey = RedisHuey("bench", url=_URL, notify_result=True)


@huey.task()
def echo(text: str) -> str:
    """Return the text."""
    return text


if __name__ == "__main__":
    # A task is known by its module's name, which is another one for a script.
    from bench.peers import huey_echo  # noqa: PLW0406 - see above

    serve(huey_echo.echo, lambda sent: sent.get(blocking=True, timeout=60))
