"""Measure one graph in a process of its own: nothing else's memory is counted.

Run as `python -m models.proof.measure GRAPH ARCHITECTURE_JSON CONTEXT_TOKENS`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from fleet_protocol.manifest import Architecture
from models.errors import VerificationError
from models.proof.runner import GraphRunner

_PROMPT_TOKENS: Final = 256
_ANSWER_TOKENS: Final = 32
_DEADLINE_S: Final = 300


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What the graph costs on this machine.

    Attributes:
        memory_mb: Most resident memory of a process that loaded it, read 256 tokens and wrote 32,
            with one row of cache; Python and ONNX Runtime included.
        load_s: Until the graph is ready.
        prefill_tokens_per_s: Reading.
        decode_tokens_per_s: Writing, one row.
    """

    memory_mb: int
    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def measure(graph: Path, architecture: Architecture, *, context_tokens: int) -> Measurement:
    """Measure in a child process; raises VerificationError where it does not run."""
    shape = msgspec.json.encode(architecture).decode()
    found = run_apart(
        "models.proof.measure", str(graph), shape, str(context_tokens), what="graph", needs_mb=500
    )
    return msgspec.json.decode(found, type=Measurement)


def run_apart(module: str, *arguments: str, what: str, needs_mb: int) -> str:
    """Run a module in a process of its own and return what it writes.

    Args:
        module: Run as `python -m` does.
        arguments: Its own.
        what: Is measured, for the error.
        needs_mb: Memory that must be free, for the error.

    Raises:
        VerificationError: It fails, or takes longer than five minutes.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            check=True,
            text=True,
            timeout=_DEADLINE_S,
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().rpartition("\n")[2] or f"exit code {error.returncode}"
        raise _not_run(what, needs_mb, said) from error
    except subprocess.TimeoutExpired as error:
        raise _not_run(what, needs_mb, f"no end after {_DEADLINE_S} s") from error
    return done.stdout


def _not_run(what: str, needs_mb: int, why: str) -> VerificationError:
    return VerificationError(
        f"the {what} did not run in a process of its own: {why}",
        hint=f"check that {needs_mb} MB of memory are free and run the same command again",
    )


def measure_here(graph: Path, architecture: Architecture, *, context_tokens: int) -> Measurement:
    """Measure in this process, with a shorter prompt where the context is short."""
    prompt_tokens = max(1, min(_PROMPT_TOKENS, context_tokens - _ANSWER_TOKENS))
    answer_tokens = min(_ANSWER_TOKENS, context_tokens - prompt_tokens)
    began = time.perf_counter()
    runner = GraphRunner(graph, architecture)
    loaded = time.perf_counter()
    prompt = [token % architecture.vocab for token in range(1, prompt_tokens + 1)]
    runner.prefill(prompt)
    read = time.perf_counter()
    for turn in range(answer_tokens):
        runner.step(np.array([[turn % architecture.vocab]]), [prompt_tokens + turn])
    wrote = time.perf_counter()
    return Measurement(
        memory_mb=-(-peak_bytes() // (1 << 20)),
        load_s=round(loaded - began, 3),
        prefill_tokens_per_s=round(prompt_tokens / (read - loaded), 1),
        decode_tokens_per_s=round(answer_tokens / (wrote - read), 1),
    )


def peak_bytes() -> int:
    """Most resident memory since this program began."""
    status = Path("/proc/self/status")
    if not status.is_file():
        # macOS counts in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux its peak survives exec, so a child starts with its parent's.
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    found = measure_here(
        Path(sys.argv[1]),
        msgspec.json.decode(sys.argv[2], type=Architecture),
        context_tokens=int(sys.argv[3]),
    )
    sys.stdout.write(msgspec.json.encode(found).decode())
