"""A peer that is a program of its own: one JSON object in, one JSON object out, line by line."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
import psutil

from bench.processes import peak_mb
from bench.workload import Job, Run

HERE = Path(__file__).parent
_END_WITHIN_S = 10


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing a child says.

    Attributes:
        load_s: What loading the model took it.
    """

    load_s: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a child says of itself.

    Attributes:
        idle_cpu_pct: Processor time of a second without anything to do.
    """

    idle_cpu_pct: float


class Child:
    """A running child.

    Attributes:
        ready: What it said first.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.ready = msgspec.json.decode(self._line(), type=Ready)

    def run(self, jobs: Sequence[Job], *, at_once: int = 1) -> Run:
        """Let it generate."""
        return msgspec.json.decode(self._ask({"jobs": jobs, "at_once": at_once}), type=Run)

    def status(self) -> Status:
        """Ask for its idle load; takes a second and a half."""
        return msgspec.json.decode(self._ask({"status": True}), type=Status)

    def peak_mb(self) -> float:
        """Return the most memory it ever had resident, in 10^6 bytes."""
        return peak_mb(psutil.Process(self._process.pid))

    def _ask(self, question: object) -> bytes:
        pipe = self._pipe(self._process.stdin)
        pipe.write(msgspec.json.encode(question) + b"\n")
        pipe.flush()
        return self._line()

    def _line(self) -> bytes:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended; its last words are above")
        return line

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise AssertionError("the child was started without pipes")
        return pipe


class Started:
    """A child and the time since its process was started.

    Attributes:
        first_token_s: From the start of the process to the first token of `first`.
    """

    def __init__(self, child: Child, first_token_s: float) -> None:
        self.child = child
        self.first_token_s = first_token_s


@contextlib.contextmanager
def child(
    script: str, *words: str | Path, first: Job, python: str | Path = sys.executable
) -> Iterator[Started]:
    """Run a script of this folder until the block ends; its log goes to standard error.

    Args:
        script: Name of the file.
        words: Its arguments.
        first: The first job; what it costs is the program's start-up.
        python: The interpreter.
    """
    command = [str(word) for word in (python, HERE / script, *words)]
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        running = Child(process)
        running.run([first])
        yield Started(running, time.perf_counter() - started_s)
    finally:
        process.terminate()
        try:
            process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
