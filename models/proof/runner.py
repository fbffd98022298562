"""A small greedy decoder over an artefact's graph, on plain ONNX Runtime.

It feeds the graph exactly as a worker does: one buffer for past and present, the prompt in chunks,
several rows of different length in one step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fleet_protocol.calculation import SPARE_TOKENS
from fleet_protocol.manifest import Architecture
from models.checkpoints.checkpoint import Float32Array
from models.errors import VerificationError

Int64Array: TypeAlias = npt.NDArray[np.int64]
Int32Array: TypeAlias = npt.NDArray[np.int32]
_QUIET: Final = 3
PREFILL_CHUNK_TOKENS: Final = 256


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A greedy answer.

    Attributes:
        tokens: Without the stop token.
        logprobs: Natural log-probability of each token, the stop token's included.
        margins: By how much each of them led the next best one, in nats.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]


class Guide(Protocol):
    """Keeps one answer within a form, or puts the results of calculations into it."""

    @property
    def hidden_tokens(self) -> int:
        """Tokens so far that nobody is shown."""
        ...

    def allow(self, logits: Float32Array) -> None:
        """Set forbidden tokens to -inf, in place."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...


def counted_tokens(tokens: int, *, guide: Guide | None, spare_tokens: int) -> int:
    """Return how much of its longest length an answer has used, as a worker counts."""
    return tokens - (min(guide.hidden_tokens, spare_tokens) if guide is not None else 0)


def open_session(graph: Path) -> ort.InferenceSession:
    """Load a graph for the CPU, quietly; raises VerificationError where it does not load."""
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's errors share no base but Exception.
        raise VerificationError(
            f"{graph.name} does not load: {error}", hint="build the artefact again"
        ) from error


class GraphRunner:
    """A loaded graph with a key-value cache of `rows` rows."""

    def __init__(
        self, graph: Path, architecture: Architecture, *, rows: int = 1, max_len: int = 512
    ) -> None:
        self._session = open_session(graph)
        self.rows, self.max_len = rows, max_len
        self._vocab = architecture.vocab
        shape = (rows, architecture.kv_heads, max_len, architecture.head_dim)
        self._cache = {
            f"{layer}.{part}": np.zeros(shape, np.float32)
            for layer in range(architecture.layers)
            for part in ("key", "value")
        }

    def step(self, token_ids: Int64Array, lengths: list[int], *, row: int = 0) -> Float32Array:
        """Return logits [batch, vocab] after token_ids [batch, tokens]; arguments as for `read`."""
        return self.read(token_ids, lengths, row=row)[:, 0]

    def read(
        self,
        token_ids: Int64Array,
        lengths: list[int],
        *,
        row: int = 0,
        logit_tokens: int = 1,
    ) -> Float32Array:
        """Return logits [batch, logit_tokens, vocab] of the last ones of token_ids [batch, tokens].

        Args:
            token_ids: New tokens of rows `row`, `row` + 1, ...
            lengths: Of each of them, the tokens that are in the cache already.
            row: First row of the cache that takes part.
            logit_tokens: 1 to tokens.
        """
        new = token_ids.shape[1]
        if max(lengths) + new > self.max_len:
            raise ValueError(f"{max(lengths)} + {new} tokens exceed the cache's {self.max_len}")
        seqlens = np.array([length + new - 1 for length in lengths], np.int32)
        total = np.array([max(lengths) + new], np.int32)
        wanted = np.array([logit_tokens], np.int64)
        logits = np.empty((len(lengths), logit_tokens, self._vocab), np.float32)
        binding = self._session.io_binding()
        _bind_input(binding, "input_ids", np.ascontiguousarray(token_ids))
        _bind_input(binding, "seqlens_k", seqlens)
        _bind_input(binding, "total_len", total)
        _bind_input(binding, "logit_tokens", wanted)
        _bind_output(binding, "logits", logits)
        for name, buffer in self._cache.items():
            rows = buffer[row : row + len(lengths)]
            _bind_input(binding, f"past.{name}", rows)
            _bind_output(binding, f"present.{name}", rows)
        self._session.run_with_iobinding(binding)
        return logits

    def prefill(
        self, prompt: list[int], *, row: int = 0, chunk: int = PREFILL_CHUNK_TOKENS
    ) -> Float32Array:
        """Read a prompt into a row; return the logits [vocab] of its last position."""
        logits = np.empty((1, self._vocab), np.float32)
        for start in range(0, len(prompt), chunk):
            tokens = np.array([prompt[start : start + chunk]], np.int64)
            logits = self.step(tokens, [start], row=row)
        return np.asarray(logits[0])

    def answer(
        self,
        prompt: list[int],
        *,
        max_tokens: int,
        stops: tuple[int, ...],
        guide: Guide | None = None,
    ) -> Answer:
        """Answer greedily on row 0; `max_tokens` are as many as a worker would count."""
        spare = min(SPARE_TOKENS, self.max_len - len(prompt) - max_tokens)
        logits = self.prefill(prompt)
        tokens: list[int] = []
        logprobs: list[float] = []
        margins: list[float] = []
        while True:
            if guide is not None:
                guide.allow(logits)
            best = int(logits.argmax())
            logprobs.append(float(log_softmax(logits)[best]))
            margins.append(float(logits[best] - np.partition(logits, -2)[-2]))
            if best in stops:
                break
            tokens.append(best)
            if guide is not None:
                guide.accept(best)
            if counted_tokens(len(tokens), guide=guide, spare_tokens=spare) >= max_tokens:
                break
            past = len(prompt) + len(tokens) - 1
            logits = self.step(np.array([[best]], np.int64), [past])[0]
        return Answer(tokens=tuple(tokens), logprobs=tuple(logprobs), margins=tuple(margins))


def log_softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    """Return natural log-probabilities along the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def _bind_input(
    binding: ort.IOBinding, name: str, array: Int64Array | Int32Array | Float32Array
) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: Float32Array) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
