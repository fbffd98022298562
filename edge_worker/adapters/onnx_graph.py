"""A model graph in onnxruntime, with one buffer of keys and values whose rows are requests.

The graph reads and writes keys and values in place
(past and present are the same memory, bound by pointer), takes each row's own length, and so needs
neither padding nor a copy per token.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_worker.adapters.onnx_session import REBUILD_HINT, open_session
from edge_worker.core.batching import EngineSettings
from edge_worker.core.sampling import Float32Array, Int64Array
from edge_worker.ports import ModelError
from fleet_protocol.manifest import Architecture

Int32Array: TypeAlias = npt.NDArray[np.int32]


class KvGraph:
    """A loaded graph and its rows. What the inputs mean is in `manifest.Architecture`.

    Attributes:
        tokens: int64 [slots, 1]: next token of each generating row; set before `decode`.
        lengths: int32 [slots]: tokens the row already holds; set before `decode`.
        context_tokens: Most tokens a row holds.
    """

    def __init__(
        self,
        path: Path,
        *,
        architecture: Architecture,
        context_tokens: int,
        settings: EngineSettings,
    ) -> None:
        """Load. Raises ModelError: the file is no graph of this shape, or the memory is short."""
        self.context_tokens = context_tokens
        self.tokens: Int64Array = np.zeros((settings.slots, 1), np.int64)
        self.lengths: Int32Array = np.zeros(settings.slots, np.int32)
        self._slots = settings.slots
        self._architecture = architecture
        self._session = open_session(path, settings)
        _check_shapes(self._session, architecture)
        self._kv = _reserve(
            (
                architecture.layers,
                2,
                settings.slots,
                architecture.kv_heads,
                context_tokens,
                architecture.head_dim,
            )
        )
        self._logits: Float32Array = np.empty((settings.slots, 1, architecture.vocab), np.float32)
        self._totals: Int32Array = np.zeros(1, np.int32)
        self._logit_tokens: Int64Array = np.ones(1, np.int64)
        self._decoders: dict[int, Any] = {}
        self._probe()

    def prefill(self, row: int, token_ids: Int64Array, *, start: int) -> Float32Array:
        """Read token_ids [tokens] into `row` from position `start`; return logits [vocab].

        The logits are of the last token and valid until the next run. Raises what onnxruntime
        raises; the row's positions before `start` are intact then.
        """
        ids = np.ascontiguousarray(token_ids[None], np.int64)
        total = start + len(token_ids)
        last = np.array([total - 1], np.int32)
        self._totals[0] = total
        binding = self._bind(row, ids=ids, last=last, logits=self._logits[row : row + 1])
        self._session.run_with_iobinding(binding)
        logits: Float32Array = self._logits[row, 0]
        return logits

    def decode(self, rows: int) -> Float32Array:
        """Add one token to each of the first `rows` rows; return logits [rows, vocab].

        They are valid until the next run. Raises what onnxruntime raises; nothing but the new
        token's position may have been written then, so the same step can be run again.
        """
        binding = self._decoders.get(rows)
        if binding is None:
            binding = self._decoders[rows] = self._bind(
                0, ids=self.tokens[:rows], last=self.lengths[:rows], logits=self._logits[:rows]
            )
        self._totals[0] = int(self.lengths[:rows].max()) + 1
        self._session.run_with_iobinding(binding)
        return self._logits[:rows, 0]

    def decode_alone(self, row: int) -> Float32Array:
        """As `decode`, for one row whatever its place; return logits [vocab]."""
        return self.prefill(row, self.tokens[row], start=int(self.lengths[row]))

    def copy_row(self, *, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of a row to another one."""
        self._kv[:, :, target, :, :tokens] = self._kv[:, :, source, :, :tokens]

    def _bind(self, row: int, *, ids: Int64Array, last: Int32Array, logits: Float32Array) -> Any:
        """Bind the graph to rows `row` to `row + len(ids)`. The arrays must outlive its runs."""
        binding = self._session.io_binding()
        for name, array in (
            ("input_ids", ids),
            ("seqlens_k", last),
            ("total_len", self._totals),
            ("logit_tokens", self._logit_tokens),
        ):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for layer in range(self._architecture.layers):
            for side, name in enumerate(("key", "value")):
                part = self._kv[layer, side, row : row + len(ids)]
                place = ("cpu", 0, np.float32, part.shape, part.ctypes.data)
                binding.bind_input(f"past.{layer}.{name}", *place)
                binding.bind_output(f"present.{layer}.{name}", *place)
        return binding

    def _probe(self) -> None:
        """Run it once: a wrong graph must show now, not in the first job."""
        try:
            logits = self.prefill(0, np.zeros(1, np.int64), start=0)
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise _wrong_graph(f"it does not run here: {error}") from error
        if not np.isfinite(logits).all():
            raise _wrong_graph("its logits are not numbers")


def _reserve(shape: tuple[int, ...]) -> Float32Array:
    """Return zeros of `shape` whose pages become resident when they are first written.

    Straight from the system, because numpy asks for huge pages: the first tokens of a head would
    then make all the rest of it resident, too (8 rows: 1,070 MB in all, this way 349).
    """
    try:
        memory = mmap.mmap(-1, 4 * int(np.prod(shape)))
    except (OSError, OverflowError) as error:
        raise _short_of_memory(str(error)) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A kernel without huge pages does not know the word.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)


def _check_shapes(session: ort.InferenceSession, architecture: Architecture) -> None:
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    names = [f"{n}.{side}" for n in range(architecture.layers) for side in ("key", "value")]
    wanted_inputs = {"input_ids", "seqlens_k", "total_len", "logit_tokens"}
    wanted_inputs |= {f"past.{name}" for name in names}
    wanted_outputs = {"logits", *(f"present.{name}" for name in names)}
    if inputs.keys() != wanted_inputs or outputs != wanted_outputs:
        odd = sorted((inputs.keys() ^ wanted_inputs) | (outputs ^ wanted_outputs))
        raise _wrong_graph(f"its inputs and outputs differ from the manifest's: {odd[:4]}")
    past = inputs["past.0.key"]
    shape = [past.shape[1], past.shape[3]]
    if shape != [architecture.kv_heads, architecture.head_dim] or past.type != "tensor(float)":
        raise _wrong_graph(f"its keys are {past.type} {past.shape}, not as the manifest says")


def _wrong_graph(what: str) -> ModelError:
    return ModelError(
        f"the graph is not for this engine: {what}", code="model_wrong_graph", hint=REBUILD_HINT
    )


def _short_of_memory(what: str) -> ModelError:
    return ModelError(
        f"the memory does not suffice: {what}",
        code="model_memory",
        hint="lower `slots` or `max_tokens`, or take a smaller model",
    )
