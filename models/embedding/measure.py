"""Measure one encoder in a process of its own: nothing else's memory is counted.

Run by `models.embedding.build` as `python -m models.embedding.measure GRAPH TOKENIZER MAX_TOKENS`.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from models.embedding.runner import EncoderRunner, plain_tokenizer
from models.embedding.sentences import load_pairs, sentences_of
from models.proof.measure import peak_bytes, run_apart

_BATCH: Final = 16
_SENTENCES: Final = 48
_LONG_WORDS: Final = 120


class EncoderCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the encoder costs on this machine.

    Attributes:
        memory_mb: Most resident memory of a process that embedded 16 texts of 120 words at once;
            Python and ONNX Runtime included.
        load_s: Until graph and tokenizer are ready.
        ms_alone: A sentence of about ten words, one at a time; the median.
        ms_of_16: The same, its share of a batch of 16; the median.
    """

    memory_mb: int
    load_s: float
    ms_alone: float
    ms_of_16: float


def measure(graph: Path, tokenizer: Path, *, max_tokens: int) -> EncoderCost:
    """Measure in a child process; raises VerificationError where it does not run."""
    arguments = (str(graph), str(tokenizer), str(max_tokens))
    found = run_apart("models.embedding.measure", *arguments, what="encoder", needs_mb=300)
    return msgspec.json.decode(found, type=EncoderCost)


def measure_here(graph: Path, tokenizer: Path, *, max_tokens: int) -> EncoderCost:
    """Measure in this process."""
    began = time.perf_counter()
    text = tokenizer.read_text("utf-8")
    runner = EncoderRunner(graph, plain_tokenizer(text, max_tokens=max_tokens))
    load_s = time.perf_counter() - began
    pairs = [pair for pair in load_pairs() if pair.language == "en"]
    sentences = sentences_of(pairs)[:_SENTENCES]
    runner.embed(sentences[:1])
    alone = statistics.median(_time_ms(runner, [sentence]) for sentence in sentences)
    batches = [sentences[at : at + _BATCH] for at in range(0, len(sentences), _BATCH)]
    together = statistics.median(_time_ms(runner, batch) for batch in batches)
    runner.embed([" ".join(["word"] * _LONG_WORDS)] * _BATCH, batch=_BATCH)
    return EncoderCost(
        memory_mb=-(-peak_bytes() // (1 << 20)),
        load_s=round(load_s, 3),
        ms_alone=round(alone, 2),
        ms_of_16=round(together / _BATCH, 2),
    )


def _time_ms(runner: EncoderRunner, texts: list[str]) -> float:
    began = time.perf_counter()
    runner.embed(texts, batch=len(texts))
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    found = measure_here(Path(sys.argv[1]), Path(sys.argv[2]), max_tokens=int(sys.argv[3]))
    sys.stdout.write(msgspec.json.encode(found).decode())
