"""The peer of `bench/dispatch.py`: an echo actor on Dramatiq and Redis, results kept in Redis.

Run by `dramatiq bench.peers.dramatiq_echo`; the Redis URL comes from `BENCH_REDIS_URL`.
"""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")

backend = RedisBackend(url=_URL)
broker = RedisBroker(url=_URL)
broker.add_middleware(Results(backend=backend))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, max_retries=3)
def echo(text: str) -> str:
    """Return the text."""
    return text
