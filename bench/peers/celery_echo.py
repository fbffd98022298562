"""A peer of `bench/dispatch.py`: an echo task on Celery and Redis, results kept in Redis.

A message is acknowledged when its task is done (`task_acks_late`): as usually set, a killed worker
loses it. Run by `celery --app bench.peers.celery_echo worker`, and as a script it is the producer;
the Redis URL comes from `BENCH_REDIS_URL`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from celery import Celery

from bench.peers.producer import serve

_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")

app = Celery("bench.peers.celery_echo", broker=_URL, backend=_URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # As many as wait with us: the default of 4 a thread would leave the worker idle in between.
    worker_prefetch_multiplier=32,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
)


@app.task(name="echo")
def echo(text: str) -> str:
    """Return the text."""
    return text


if __name__ == "__main__":
    serve(echo.delay, lambda sent: sent.get(timeout=60))
