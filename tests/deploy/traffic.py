"""A device that asks and asks, from the boards' network, while something else happens."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Self

from tests.deploy.board_lab import Board, BoardLab

PATIENCE_S: Final = 900.0
"""For the last answer, after the last question."""
OPEN_MOST: Final = 4


def ask(lab: BoardLab, url: str, identity: Path, question: str, *options: str) -> dict[str, Any]:
    """Put one question over mutual TLS, and return what came back."""
    fleet = [sys.executable, "-m", "fleet_cli", "ask", question, "--json", "--cache", "off"]
    who = ["--broker", url, "--identity", str(identity)]
    done = subprocess.run(
        lab.on_lan(*fleet, *who, *options), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Traffic:
    """`fleet submit`, fed line by line. Lifetime is `with`; `finish` waits for all answers.

    Attributes:
        asked: Ids of the jobs, in order.
        results: What came back, as it came; also while it runs.
    """

    def __init__(self, lab: BoardLab, hub: Board, identity: Path) -> None:
        self.asked: list[str] = []
        self.results: list[dict[str, Any]] = []
        self._lab = lab
        self._broker = f"mqtts://{hub.address}:8883"
        self._identity = identity
        self._errors = lab.folder / f"{identity.name}.submit.log"

    def __enter__(self) -> Self:
        words = [sys.executable, "-m", "fleet_cli", "submit", "-f", "-", "--wait", "--jsonl"]
        who = ["--broker", self._broker, "--identity", str(self._identity), "--window", "64"]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                self._lab.on_lan(*words, *who, "--timeout", str(PATIENCE_S)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, name="traffic-results")
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not written yet is wanted by nobody
                _open(stream).close()

    def ask(self, question: str, **options: Any) -> None:
        """Submit one more job that no cloud and no cache may answer."""
        self.asked.append(f"{self._identity.name}-{len(self.asked)}")
        line = {"id": self.asked[-1], "prompt": question, "escalate": "never", "cache": "off"}
        stream = _open(self._process.stdin)
        stream.write(json.dumps({**line, "max_tokens": 16, **options}) + "\n")
        stream.flush()

    @contextlib.contextmanager
    def steadily(self, *, every_s: float) -> Iterator[None]:
        """Ask again and again until the block ends, while few questions are open.

        On a slow machine boards would not keep up, and what is tested would wait for all of them.
        """
        ended = threading.Event()

        def keep_asking() -> None:
            while not ended.wait(every_s):
                if len(self.asked) - len(self.results) < OPEN_MOST:
                    self.ask(f"What is {len(self.asked)} plus {len(self.asked)}?")

        thread = threading.Thread(target=keep_asking, name="traffic-questions")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Wait for what is still to come; return all results by id."""
        _open(self._process.stdin).close()
        self._process.wait(PATIENCE_S)
        self._reader.join()
        assert len(self.results) == len(self.asked), self._errors.read_text()
        return {str(result["id"]): result for result in self.results}

    def _read(self) -> None:
        self.results.extend(json.loads(line) for line in _open(self._process.stdout))


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
