"""llama.cpp's own server as a peer: parallel slots, continuous batching, the same weights."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil

from bench.processes import free_port, peak_mb, process
from bench.workload import Job, Run

_START_WITHIN_S = 60.0
_ANSWER_WITHIN_S = 300.0


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """The server's own clock.

    Attributes:
        prompt_ms: Reading the prompt, until the first token is chosen.
        predicted_ms: From there to the last token.
    """

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What `/completion` answers."""

    content: str
    timings: Timings


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What `/tokenize` answers."""

    tokens: list[int]


class LlamaServer:
    """A running server.

    Attributes:
        load_s: From the start of the process until it was ready.
        first_token_s: From the start of the process to its first token.
    """

    def __init__(self, port: int, running: psutil.Process, *, keeps_prefixes: bool = False) -> None:
        self._port = port
        self._process = running
        self._keeps_prefixes = keeps_prefixes
        self.load_s = 0.0
        self.first_token_s = 0.0

    def keeping_prefixes(self) -> LlamaServer:
        """Return the same server, asked to reuse what it read of a prompt that began alike."""
        return LlamaServer(self._port, self._process, keeps_prefixes=True)

    def run(self, jobs: Sequence[Job], *, at_once: int = 1) -> Run:
        """Work on the jobs in order, `at_once` of them at any time.

        The times of one job are the server's own, so that HTTP does not count against it.
        """
        started_s = time.perf_counter()
        with ThreadPoolExecutor(at_once) as clients:
            done = list(clients.map(self._complete, jobs))
        took_s = time.perf_counter() - started_s
        return Run(
            took_s=took_s,
            tokens=sum(one.timings.predicted_n for one in done),
            first_s=[one.timings.prompt_ms / 1e3 for one in done],
            generating_s=[one.timings.predicted_ms / 1e3 for one in done],
            answers=[one.content for one in done],
        )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the tokens of raw text."""
        asked = {"content": text, "add_special": False, "parse_special": True}
        answer = msgspec.json.decode(self._post("/tokenize", asked), type=Tokens)
        return tuple(answer.tokens)

    def peak_mb(self) -> float:
        """Return the most memory it ever had resident, in 10^6 bytes."""
        return peak_mb(self._process)

    def wait_ready(self) -> None:
        """Wait until the model is loaded."""
        while time.time() - self._process.create_time() < _START_WITHIN_S:
            if not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._answer("GET", "/health", b"") is not None:
                    return
            time.sleep(0.005)
        raise RuntimeError("llama-server did not start")

    def _complete(self, job: Job) -> Completion:
        asked = {
            "prompt": job.prompt_tokens,
            "n_predict": job.answer_tokens,
            "ignore_eos": True,
            "temperature": 0,
            # The cheapest way to the best token; the default chain would sort candidates first.
            "samplers": ["top_k"],
            "top_k": 1,
            "cache_prompt": self._keeps_prefixes,
        }
        return msgspec.json.decode(self._post("/completion", asked), type=Completion)

    def _post(self, path: str, asked: object) -> bytes:
        answer = self._answer("POST", path, msgspec.json.encode(asked))
        if answer is None:
            raise RuntimeError(f"llama-server refused {path}")
        return answer

    def _answer(self, verb: str, path: str, body: bytes) -> bytes | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_WITHIN_S)
        try:
            connection.request(verb, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return text if response.status == http.HTTPStatus.OK else None


@contextlib.contextmanager
def llama_server(
    program: Path, model: Path, *, slots: int, threads: int, first: Job, log: Path
) -> Iterator[LlamaServer]:
    """Run a server on a free loopback port until the block ends.

    Args:
        program: `llama-server`.
        model: GGUF file.
        slots: Requests it works on at once, 2,048 tokens each.
        threads: Of one run.
        first: The first job; what it costs is part of the start-up.
        log: Where its output goes.
    """
    port = free_port()
    command = [
        *(program, "--model", model, "--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(slots), "--ctx-size", str(2_048 * slots)),
        *("--threads", str(threads), "--threads-batch", str(threads)),
        *("--no-webui", "--cache-ram", "0", "--no-warmup"),
    ]
    started_s = time.perf_counter()
    with process(command, log=log) as running:
        server = LlamaServer(port, running)
        server.wait_ready()
        server.load_s = time.perf_counter() - started_s
        server.run([first])
        server.first_token_s = time.perf_counter() - started_s
        yield server
