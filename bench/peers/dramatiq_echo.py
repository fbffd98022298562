"""A peer of `bench/dispatch.py`: an echo actor on Dramatiq and Redis, results kept in Redis.

A message is acknowledged when its actor is done. Run by `dramatiq bench.peers.dramatiq_echo`, and
as a script it is the producer; the Redis URL comes from `BENCH_REDIS_URL`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.peers.producer import serve

_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")

backend = RedisBackend(url=_URL)
broker = RedisBroker(url=_URL)
broker.add_middleware(Results(backend=backend))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, max_retries=3)
def echo(text: str) -> str:
    """Return the text."""
    return text


if __name__ == "__main__":
    serve(echo.send, lambda sent: sent.get_result(backend=backend, block=True, timeout=60_000))
