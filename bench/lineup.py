"""The programs of the inference benchmark, how each is started and what starting costs."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import workload
from bench.peers.child import Child, Started, child
from bench.peers.llama_cpp import LlamaServer, llama_server
from bench.prepare import Peers
from bench.rounds import Rounds
from bench.workload import Job, Peer
from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.tokenizer import ChatTokenizer

TOGETHER = 8
ANSWER_TOKENS = 24
COMPARED_TOKENS = 16
OURS, LLAMA, OPTIMUM, TRANSFORMERS = "ours", "llamacpp", "optimum", "transformers"
# With one more of their abilities; by default all do the same: read everything, token by token.
CACHED, SPECULATIVE, LLAMA_CACHED = "ours_cached", "ours_speculative", "llamacpp_cached"
ABILITIES: dict[str, dict[str, object]] = {
    OURS: {"prefix_mb": 0, "draft_tokens": 0},
    CACHED: {"draft_tokens": 0},
    SPECULATIVE: {"prefix_mb": 0},
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one run of the benchmark starts, and with what.

    Attributes:
        model: As the user named it.
        threads: Of every program.
        log: Where the peers' output goes.
    """

    model: str
    artefact: Artefact
    tokenizer: ChatTokenizer
    peers: Peers
    threads: int
    log: Path

    @property
    def first(self) -> Job:
        """The job that ends a program's start-up."""
        return workload.questions(self.tokenizer.encode, answer_tokens=1)[0]

    def ours(self, name: str = OURS, *, slots: int = TOGETHER) -> AbstractContextManager[Started]:
        """Start our engine with the abilities of that name."""
        settings = {"slots": slots, "intra_op_threads": self.threads, **ABILITIES[name]}
        words = (self.model, msgspec.json.encode(settings).decode())
        return child("edgefleet.py", *words, first=self.first)

    def llama(self, *, slots: int = TOGETHER) -> AbstractContextManager[LlamaServer]:
        """Start llama.cpp's server."""
        return llama_server(
            self.peers.llama_server,
            self.peers.gguf,
            slots=slots,
            threads=self.threads,
            first=self.first,
            log=self.log,
        )

    def generate(self, runtime: str) -> AbstractContextManager[Started]:
        """Start `generate` of optimum or transformers."""
        return child(
            "transformers_generate.py",
            *(runtime, self.peers.optimum_model, str(self.threads)),
            first=self.first,
            python=self.peers.optimum_python,
        )


@contextlib.contextmanager
def running(setup: Setup) -> Iterator[dict[str, Peer]]:
    """Start everything that is there, until the block ends."""
    with contextlib.ExitStack() as stack:
        peers: dict[str, Peer] = {
            name: stack.enter_context(setup.ours(name)).child for name in ABILITIES
        }
        if setup.peers.has_llama:
            server = stack.enter_context(setup.llama())
            peers |= {LLAMA: server, LLAMA_CACHED: server.keeping_prefixes()}
        if setup.peers.has_optimum:
            for name in (OPTIMUM, TRANSFORMERS):
                peers[name] = stack.enter_context(setup.generate(name)).child
        yield peers


def measure_costs(setup: Setup, rounds: Rounds, number: int) -> None:
    """Start each program afresh, with one slot: its start-up, and its memory after one answer."""
    job = msgspec.structs.replace(setup.first, answer_tokens=ANSWER_TOKENS)
    with setup.ours(slots=1) as ours:
        ours.child.run([job])
        _note_child(rounds, number, OURS, ours)
    if setup.peers.has_llama:
        with setup.llama(slots=1) as server:
            server.run([job])
            rounds.note(number, LLAMA, "load_s", server.load_s)
            rounds.note(number, LLAMA, "first_token_s", server.first_token_s)
            rounds.note(number, LLAMA, "peak_mb", server.peak_mb())
    # Tens of seconds each, and far apart: once is enough.
    if setup.peers.has_optimum and number == 0:
        for name in (OPTIMUM, TRANSFORMERS):
            with setup.generate(name) as started:
                started.child.run([job])
                _note_child(rounds, number, name, started)


def _note_child(rounds: Rounds, number: int, name: str, started: Started) -> None:
    rounds.note(number, name, "load_s", started.child.ready.load_s)
    rounds.note(number, name, "first_token_s", started.first_token_s)
    rounds.note(number, name, "peak_mb", started.child.peak_mb())
    if name == OURS:
        rounds.note(number, name, "idle_cpu_pct", started.child.status().idle_cpu_pct)


def agreement(setup: Setup, peers: dict[str, Peer]) -> float:
    """Return how much of our answers' beginnings llama.cpp gives, 0..1: the weights are the same.

    Kernels round differently, so that now and then a near tie falls the other way.
    """
    jobs = workload.questions(setup.tokenizer.encode, answer_tokens=COMPARED_TOKENS)
    pairs = zip(peers[OURS].run(jobs).answers, peers[LLAMA].run(jobs).answers, strict=True)
    return statistics.mean(_same_share(ours, theirs) for ours, theirs in pairs)


def _same_share(one: str, other: str) -> float:
    """Return the share of the characters before the first difference."""
    length = max(len(one), len(other), 1)
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other))) / length


def measure_peaks(peers: dict[str, Peer], rounds: Rounds) -> None:
    """Note the memory of the programs that worked on several requests at once."""
    for name in (OURS, LLAMA):
        peer = peers.get(name)
        if isinstance(peer, Child | LlamaServer):
            rounds.note(0, name, "together_peak_mb", peer.peak_mb())
