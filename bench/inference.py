"""Tokens per second, time to first token and memory of the ONNX engine on the default model.

Each round runs in processes of its own, so that load time and peak memory are those of a fresh
worker. The first peer is our own engine without batching: the same requests, one at a time.
Medians over the rounds are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.report import Aim, report
from edge_worker.adapters.artefact import Artefact, cache_folder, load_artefact, resolve_model
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest, Grew
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation

MODEL = "smollm2-135m-instruct-int8"
TOGETHER = 8
PREFILL_TOKENS = 256
QUESTIONS = (
    "Describe what a thermostat does in a house.",
    "Write a short story about a lighthouse.",
    "Explain how rain forms, step by step.",
    "List ten animals and where they live.",
    "Tell me about the history of bread.",
    "What should I pack for a week at the sea?",
    "Describe a busy market in the morning.",
    "Explain why leaves change colour in autumn.",
)


@dataclass
class Run:
    """What came of a set of requests. Times are seconds from the start of the run."""

    took_s: float = 0.0
    tokens: int = 0
    first_s: dict[str, float] = field(default_factory=dict)


def run(engine: OnnxEngine, requests: list[GenerationRequest]) -> Run:
    """Add requests all at once and step until the engine is idle."""
    result = Run()
    started_s = time.perf_counter()
    for request in requests:
        engine.add(request)
    while not engine.is_idle:
        events = engine.step()
        now_s = time.perf_counter() - started_s
        for event in events:
            if isinstance(event, Grew | Finished):
                result.first_s.setdefault(event.id, now_s)
            if isinstance(event, Finished):
                result.tokens += event.tokens
    result.took_s = time.perf_counter() - started_s
    return result


def questions(engine: OnnxEngine, tokens: int) -> list[GenerationRequest]:
    """Return the eight requests."""
    return [
        GenerationRequest(
            id=str(number),
            prompt_tokens=engine.encode([ChatMessage(role=ChatRole.USER, content=question)]),
            generation=Generation(max_tokens=tokens),
        )
        for number, question in enumerate(QUESTIONS)
    ]


def measure_speed(artefact: Artefact, tokens: int) -> dict[str, float]:
    """Measure one request alone, eight one at a time, and eight at once."""
    engine = OnnxEngine(artefact, settings=EngineSettings(slots=TOGETHER))
    requests = questions(engine, tokens)
    run(engine, requests[:1])
    prompt = (requests[0].prompt_tokens * PREFILL_TOKENS)[:PREFILL_TOKENS]
    read = run(
        engine,
        [GenerationRequest(id="read", prompt_tokens=prompt, generation=Generation(max_tokens=1))],
    )
    alone = [run(engine, [request]) for request in requests]
    together = run(engine, requests)
    generating_s = sum(one.took_s - min(one.first_s.values()) for one in alone)
    alone_tokens = sum(one.tokens for one in alone)
    figures = {
        "prefill_tok_s": PREFILL_TOKENS / read.took_s,
        "decode_tok_s": (alone_tokens - len(alone)) / generating_s,
        "first_token_ms": 1e3 * statistics.median(min(one.first_s.values()) for one in alone),
        "one_at_a_time_tok_s": alone_tokens / sum(one.took_s for one in alone),
        "together_tok_s": together.tokens / together.took_s,
        "together_first_token_ms": 1e3 * statistics.median(together.first_s.values()),
        "together_last_first_token_ms": 1e3 * max(together.first_s.values()),
    }
    return {**figures, "idle_cpu_pct": idle_cpu_pct(), "together_peak_mb": peak_mb()}


def measure_memory(artefact: Artefact, tokens: int) -> dict[str, float]:
    """Measure loading, and the peak memory of one slot that answered one request."""
    started_s = time.perf_counter()
    engine = OnnxEngine(artefact, settings=EngineSettings(slots=1))
    load_s = time.perf_counter() - started_s
    run(engine, questions(engine, tokens)[:1])
    return {"load_ms": 1e3 * load_s, "peak_mb": peak_mb()}


def idle_cpu_pct() -> float:
    """Return the processor time this process takes in a second with nothing to do."""
    time.sleep(0.5)  # the runtime's threads spin a little before they sleep
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    time.sleep(1.0)
    return 100 * (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)


def peak_mb() -> float:
    """Return the most memory this process ever had resident, in 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


MEASUREMENTS: dict[str, Callable[[Artefact, int], dict[str, float]]] = {
    "speed": measure_speed,
    "memory": measure_memory,
}


def measure_apart(name: str, model: str, tokens: int) -> dict[str, float]:
    """Take one measurement in a fresh process."""
    command = [sys.executable, __file__, "--only", name, "--model", model, "--tokens", str(tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {figures}", file=sys.stderr)
    return figures


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def measure_only(name: str, model: str, tokens: int) -> None:
    """Be the fresh process: measure, and print the figures as JSON."""
    started_s = time.perf_counter()
    artefact = load_artefact(resolve_model(model, cache_folder(os.environ)))
    verify_ms = 1e3 * (time.perf_counter() - started_s)
    print(json.dumps({**MEASUREMENTS[name](artefact, tokens), "verify_ms": verify_ms}))


def main() -> None:
    """Measure in rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--model", default=MODEL, help="name in the cache, or a folder")
    parser.add_argument("--tokens", type=int, default=None, help="most tokens of each answer")
    parser.add_argument("--only", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    tokens = options.tokens or (24 if options.quick else 64)
    try:
        if options.only:
            measure_only(options.only, options.model, tokens)
            return
        resolve_model(options.model, cache_folder(os.environ))
    except FleetError as error:
        raise SystemExit(f"{error}\n{error.hint}") from error
    rounds = 2 if options.quick else 5
    speeds = [measure_apart("speed", options.model, tokens) for _ in range(rounds)]
    memory = medians([measure_apart("memory", options.model, tokens) for _ in range(rounds - 1)])
    ratio = statistics.median(one["together_tok_s"] / one["one_at_a_time_tok_s"] for one in speeds)
    speed = medians(speeds)
    peer = {"together_tok_s": speed.pop("one_at_a_time_tok_s")}
    report(
        "inference",
        ours={**speed, **memory},
        peers={"one_at_a_time": peer},
        ratios={"aggregate_8_vs_1": ratio},
        aims={
            "aggregate_8_vs_1": Aim(ratio, at_least=1.8),
            "peak_mb": Aim(memory["peak_mb"], at_most=400),
            "idle_cpu_pct": Aim(speed["idle_cpu_pct"], at_most=1),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
