"""Our engine as a program that answers line by line: what a worker does without the network."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec

from bench.workload import Job, Run
from edge_worker.adapters.artefact import cache_folder, load_artefact, resolve_model
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest, Grew
from fleet_protocol.messages import Generation


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One line of input."""

    jobs: tuple[Job, ...] = ()
    at_once: int = 1
    status: bool = False


class Measured:
    """Times of one run, by the number of the job."""

    def __init__(self, jobs: int) -> None:
        self.added_s = [0.0] * jobs
        self.first_s = [0.0] * jobs
        self.last_s = [0.0] * jobs
        self.tokens = 0
        self.answers = [""] * jobs

    def see(self, event: object, now_s: float) -> bool:
        """Note an event; return whether it ended a job."""
        if not isinstance(event, Grew | Finished):
            raise RuntimeError(str(event))  # noqa: TRY004 - an answer broke; no type is wrong
        number = int(event.id)
        self.first_s[number] = self.first_s[number] or now_s
        if not isinstance(event, Finished):
            return False
        self.last_s[number] = now_s
        self.tokens += event.tokens
        self.answers[number] = event.text
        return True


def run(engine: OnnxEngine, jobs: Sequence[Job], *, at_once: int) -> Run:
    """Work on the jobs in order, `at_once` of them at any time."""
    waiting = deque(enumerate(jobs))
    measured = Measured(len(jobs))
    under_way = 0
    started_s = time.perf_counter()
    while waiting or under_way:
        while waiting and under_way < at_once:
            number, job = waiting.popleft()
            measured.added_s[number] = time.perf_counter()
            engine.add(
                GenerationRequest(
                    id=str(number),
                    prompt_tokens=job.prompt_tokens,
                    generation=Generation(max_tokens=job.answer_tokens),
                )
            )
            under_way += 1
        events = engine.step()
        now_s = time.perf_counter()
        under_way -= sum(measured.see(event, now_s) for event in events)
    return Run(
        took_s=time.perf_counter() - started_s,
        tokens=measured.tokens,
        first_s=_spans(measured.added_s, measured.first_s),
        generating_s=_spans(measured.first_s, measured.last_s),
        answers=measured.answers,
    )


def _spans(starts_s: list[float], ends_s: list[float]) -> list[float]:
    return [end - start for start, end in zip(starts_s, ends_s, strict=True)]


def status() -> dict[str, float]:
    """Return the idle load."""
    time.sleep(0.5)  # the runtime's threads spin a little before they sleep
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    time.sleep(1.0)
    idle_pct = 100 * (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
    return {"idle_cpu_pct": idle_pct}


def main() -> None:
    """Load, say so, answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name in the cache, or a folder")
    parser.add_argument("settings", help="EngineSettings as JSON")
    options = parser.parse_args()
    artefact = load_artefact(resolve_model(options.model, cache_folder(os.environ)))
    # Without stop tokens every program generates equally many.
    endless = msgspec.structs.replace(artefact.manifest, stop_tokens=())
    settings = msgspec.json.decode(options.settings, type=EngineSettings)
    started_s = time.perf_counter()
    engine = OnnxEngine(msgspec.structs.replace(artefact, manifest=endless), settings=settings)
    say({"load_s": time.perf_counter() - started_s})
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=Asked)
        say(status() if asked.status else run(engine, asked.jobs, at_once=asked.at_once))


def say(answer: object) -> None:
    """Write one line."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
