"""Our engine beside llama.cpp, optimum and transformers, on the very same weights, in one run.

All of them are loaded and warm, generate greedily and never stop early; within a round they take
turns at each measurement, and every round begins with another one, so that what else the machine
does hits all alike. Ratios are taken round by round; medians over the rounds are shown. Start-up
and memory are those of fresh processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import workload
from bench.bandwidth import ReadTest
from bench.lineup import (
    CACHED,
    LLAMA,
    LLAMA_CACHED,
    OPTIMUM,
    OURS,
    SPECULATIVE,
    TRANSFORMERS,
    Setup,
    agreement,
    measure_costs,
    measure_peaks,
    running,
)
from bench.peers.gguf_export import ArtefactCheckpoint
from bench.prepare import Peers
from bench.report import Aim, report
from bench.rounds import Measurement, Rounds
from bench.workload import Run
from edge_worker.adapters.artefact import cache_folder, load_artefact, resolve_model
from edge_worker.adapters.onnx_session import count_cores
from edge_worker.adapters.tokenizer import ChatTokenizer
from fleet_protocol.errors import FleetError
from fleet_protocol.manifest import DEFAULT_MODEL

CONCURRENCIES = (1, 2, 4, 8)
PREFILL_TOKENS = 256
RULES_REPEATS = 4
ANSWER_TOKENS, QUICK_ANSWER_TOKENS = 64, 24
ROUNDS, QUICK_ROUNDS = 5, 2
# What the aims are about: above / below, by program and figure.
RATIOS = {
    "decode_1_vs_llamacpp": ((OURS, "decode_1_tok_s"), (LLAMA, "decode_1_tok_s")),
    "prefill_vs_llamacpp": ((OURS, "prefill_tok_s"), (LLAMA, "prefill_tok_s")),
    **{
        f"aggregate_{n}_vs_llamacpp": (
            (OURS, f"aggregate_{n}_tok_s"),
            (LLAMA, f"aggregate_{n}_tok_s"),
        )
        for n in CONCURRENCIES
    },
    "decode_vs_optimum": ((OURS, "decode_1_tok_s"), (OPTIMUM, "decode_1_tok_s")),
    "decode_vs_transformers": ((OURS, "decode_1_tok_s"), (TRANSFORMERS, "decode_1_tok_s")),
    "ttft_cached_prefix": ((OURS, "ttft_ms"), (CACHED, "ttft_cached_ms")),
    "ttft_cached_vs_llamacpp": ((LLAMA_CACHED, "ttft_cached_ms"), (CACHED, "ttft_cached_ms")),
    "speculative_extraction": (
        (SPECULATIVE, "extraction_speculative_tok_s"),
        (OURS, "extraction_tok_s"),
    ),
    "aggregate_8_vs_1": ((OURS, "aggregate_8_tok_s"), (OURS, "aggregate_1_tok_s")),
}
BANDWIDTH_FRACTION = ((OURS, "weights_gb_s"), (OURS, "memory_gb_s"))
AIMS = {
    "decode_1_vs_llamacpp": 1.15,
    "aggregate_8_vs_llamacpp": 1.5,
    "prefill_vs_llamacpp": 1.3,
    "decode_vs_optimum": 3.0,
    "ttft_cached_prefix": 3.0,
    "speculative_extraction": 1.5,
    "aggregate_8_vs_1": 1.8,
}
MOST = {"peak_mb": 350.0, "first_token_s": 1.0, "idle_cpu_pct": 1.0}


def decode_tok_s(run: Run) -> float:
    """Tokens per second behind the first one of each answer."""
    return (run.tokens - len(run.first_s)) / sum(run.generating_s)


def prefill_tok_s(run: Run) -> float:
    """Prompt tokens per second, up to the first token of the answer."""
    return PREFILL_TOKENS / statistics.median(run.first_s)


def aggregate_tok_s(run: Run) -> float:
    """Tokens per second of all answers together, the reading of their prompts included."""
    return run.tokens / run.took_s


def first_ms(run: Run) -> float:
    """Median time from a request to its first token."""
    return 1e3 * statistics.median(run.first_s)


def plan(encode: workload.Encode, *, tokens: int, repeats: int) -> list[Measurement]:
    """Return what is measured, with answers of `tokens` tokens."""
    questions = workload.questions(encode, answer_tokens=tokens)
    read = workload.reading(encode, prompt_tokens=PREFILL_TOKENS)
    mixed = workload.mixed(encode, answer_tokens=tokens)
    ruled = workload.ruled(encode, repeats=RULES_REPEATS)
    copied = workload.extraction(encode, answer_tokens=tokens)
    both, every = (OURS, LLAMA), (OURS, LLAMA, OPTIMUM, TRANSFORMERS)
    alone = questions[:repeats]
    return [
        Measurement(figure="decode_1_tok_s", jobs=alone, of=decode_tok_s, who=every),
        Measurement(figure="prefill_tok_s", jobs=[read] * repeats, of=prefill_tok_s, who=every),
        *(
            Measurement(
                figure=f"aggregate_{at_once}_tok_s",
                jobs=mixed,
                at_once=at_once,
                of=aggregate_tok_s,
                who=both,
            )
            for at_once in CONCURRENCIES
        ),
        Measurement(figure="ttft_ms", jobs=ruled[1:4], of=first_ms, who=both),
        Measurement(
            figure="ttft_cached_ms",
            warm=ruled[:1],
            jobs=ruled[1:4],
            of=first_ms,
            who=(CACHED, LLAMA_CACHED),
        ),
        Measurement(figure="extraction_tok_s", jobs=copied, of=decode_tok_s, who=both),
        Measurement(
            figure="extraction_speculative_tok_s", jobs=copied, of=decode_tok_s, who=(SPECULATIVE,)
        ),
    ]


def take(setup: Setup, measurements: Sequence[Measurement], *, rounds: int) -> Rounds:
    """Measure everything `rounds` times."""
    with running(setup) as peers:
        taken = Rounds(peers)
        if LLAMA in peers:
            taken.note(0, LLAMA, "same_answer_share", agreement(setup, peers))
        weight_bytes = ArtefactCheckpoint(
            setup.artefact.graph, context_tokens=setup.artefact.manifest.context_tokens
        ).bytes_per_token()
        memory = ReadTest(threads=setup.threads)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            taken.run(number, measurements)
            speed = taken.value(number, OURS, "decode_1_tok_s")
            taken.note(number, OURS, "weights_gb_s", speed * weight_bytes / 1e9)
            taken.note(number, OURS, "memory_gb_s", memory.gb_per_s())
        measure_peaks(peers, taken)
    for number in range(max(1, rounds // 2)):
        say(f"start-up {number + 1} of {max(1, rounds // 2)}")
        measure_costs(setup, taken, number)
    return taken


def show(taken: Rounds, *, as_json: bool) -> None:
    """Print medians, ratios with their spread, and what the aims are."""
    ratios = {name: found for name, pair in RATIOS.items() if (found := taken.ratios(*pair))}
    middle = {name: statistics.median(found) for name, found in ratios.items()}
    ours = taken.medians(OURS) | taken.medians(CACHED) | taken.medians(SPECULATIVE)
    ours["bandwidth_fraction"] = statistics.median(taken.ratios(*BANDWIDTH_FRACTION))
    llama = taken.medians(LLAMA) | taken.medians(LLAMA_CACHED)
    others = {name: taken.medians(name) for name in (OPTIMUM, TRANSFORMERS)}
    report(
        "inference",
        ours=ours,
        peers={name: figures for name, figures in {LLAMA: llama, **others}.items() if figures},
        ratios=ratios,
        aims={
            **{name: Aim(middle[name], at_least=AIMS[name]) for name in AIMS if name in middle},
            **{name: Aim(ours[name], at_most=MOST[name]) for name in MOST},
        },
        as_json=as_json,
    )


def prepare_setup(model: str, *, threads: int, log: Path) -> Setup:
    """Find the model and what is there of its peers."""
    cache = cache_folder(os.environ)
    try:
        artefact = load_artefact(resolve_model(model, cache))
    except FleetError as error:
        raise SystemExit(f"{error}\n{error.hint}") from error
    peers = Peers(cache, artefact)
    if not peers.has_llama:
        say("llama.cpp is not there; make it: python -m bench prepare")
    if not peers.has_optimum:
        say("optimum is not there; make it: python -m bench prepare --optimum")
    manifest = artefact.manifest
    tokenizer = ChatTokenizer(
        artefact.tokenizer, chat_template=manifest.chat_template, stop_tokens=manifest.stop_tokens
    )
    return Setup(
        model=model,
        artefact=artefact,
        tokenizer=tokenizer,
        peers=peers,
        threads=threads,
        log=log,
    )


def say(what: str) -> None:
    """Tell the progress."""
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    """Measure in rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 3 minutes")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name in the cache, or a folder")
    parser.add_argument("--tokens", type=int, default=None, help="tokens of the longest answers")
    parser.add_argument("--threads", type=int, default=None, help="of every program")
    parser.add_argument("--rounds", type=int, default=None, help="how often all is measured")
    options = parser.parse_args()
    tokens = options.tokens or (QUICK_ANSWER_TOKENS if options.quick else ANSWER_TOKENS)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    with tempfile.TemporaryDirectory(prefix="edgefleet-bench-") as folder:
        setup = prepare_setup(
            options.model,
            threads=options.threads or count_cores(),
            log=Path(folder) / "peers.log",
        )
        measurements = plan(
            setup.tokenizer.encode, tokens=tokens, repeats=1 if options.quick else 2
        )
        taken = take(setup, measurements, rounds=rounds)
    show(taken, as_json=options.json)


if __name__ == "__main__":
    main()
