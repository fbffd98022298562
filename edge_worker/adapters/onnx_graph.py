"""A model graph in onnxruntime, with one buffer of keys and values whose rows are requests.

The graph reads and writes keys and values in place (past and present are the same memory, bound by
pointer), takes each row's own length, and so needs neither padding nor a copy per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_worker.adapters.kv_memory import KvMemory
from edge_worker.adapters.onnx_session import REBUILD_HINT, open_session
from edge_worker.core.batching import EngineSettings, MemoryPlan
from edge_worker.core.sampling import Float32Array, Int64Array
from edge_worker.ports import ModelError
from fleet_protocol.manifest import Architecture

Int32Array: TypeAlias = npt.NDArray[np.int32]

_TRIED_DRAFT: Final = 3


class KvGraph:
    """A loaded graph and its rows. What the inputs mean is in `manifest.Architecture`.

    In a run of `decode` the drafted tokens of row 0 come first, each as if it were a request of its
    own: so it computes for each of them, to the last bit, what a run of that token alone would.
    Reading them as several tokens of one row would not: other kernels, other rounding.

    Attributes:
        tokens: int64 [.., 1]: the next token of row 0, the tokens drafted for it, then the next
            token of each further row; set before `decode`.
        lengths: int32 [..]: how many tokens the row holds before each of those tokens.
        draft_tokens: Most tokens that can be drafted; 0 where this runtime would compute something
            else than without a draft.
    """

    def __init__(
        self,
        path: Path,
        *,
        architecture: Architecture,
        plan: MemoryPlan,
        settings: EngineSettings,
        graph: bytearray | None = None,
        weights: Mapping[str, bytearray] | None = None,
    ) -> None:
        """Load; `graph` and `weights` as in `open_session`.

        Raises:
            ModelError: The file is no graph of this shape, or the memory is short.
        """
        self._architecture = architecture
        self._session = open_session(path, settings, graph=graph, weights=weights)
        _check_shapes(self._session, architecture)
        self._kv = KvMemory(
            architecture,
            rows=settings.slots,
            positions=plan.context_tokens,
            views=settings.draft_tokens + 1,
        )
        self._row_0 = self._kv.views - 1
        entries = self._row_0 + settings.slots
        self.tokens: Int64Array = np.zeros((entries, 1), np.int64)
        self.lengths: Int32Array = np.zeros(entries, np.int32)
        self._logits: Float32Array = np.empty((entries, 1, architecture.vocab), np.float32)
        self._totals: Int32Array = np.zeros(1, np.int32)
        self._logit_tokens: Int64Array = np.ones(1, np.int64)
        self._decoders: dict[tuple[int, int], Any] = {}
        self._block_tokens = settings.prefill_chunk_tokens
        self._kept: Float32Array | None = None
        if plan.kept_blocks > 0:
            self._kept_memory = KvMemory(
                architecture, rows=plan.kept_blocks, positions=self._block_tokens, views=1
            )
            self._kept = self._kept_memory.array[:, :, :, :, : self._block_tokens]
        self._probe()
        is_exact = self._row_0 > 0 and self._drafts_are_exact(min(_TRIED_DRAFT, self._row_0))
        self.draft_tokens = self._row_0 if is_exact else 0

    def prefill(self, row: int, token_ids: Int64Array, *, start: int) -> Float32Array:
        """Read token_ids [tokens] into `row` from position `start`; return logits [vocab].

        The logits are of the last token and valid until the next run. Raises what onnxruntime
        raises; the row's positions before `start` are intact then.
        """
        ids = np.ascontiguousarray(token_ids[None], np.int64)
        total = start + len(token_ids)
        last = np.array([total - 1], np.int32)
        self._totals[0] = total
        binding = self._bind(self._row_0 + row, ids=ids, last=last)
        self._session.run_with_iobinding(binding)
        logits: Float32Array = self._logits[0, 0]
        return logits

    def decode(self, rows: int, *, drafted: int = 0) -> Float32Array:
        """Read the tokens set for the first `rows` rows; return logits [drafted + rows, vocab].

        They are valid until the next run. Raises what onnxruntime raises; nothing but the new
        tokens' positions may have been written then, so the same step can be run again.
        """
        count = drafted + rows
        binding = self._decoders.get((rows, drafted))
        if binding is None:
            binding = self._decoders[rows, drafted] = self._bind(
                self._row_0 - drafted, ids=self.tokens[:count], last=self.lengths[:count]
            )
        self._totals[0] = int(self.lengths[:count].max()) + 1
        self._session.run_with_iobinding(binding)
        return self._logits[:count, 0]

    def decode_alone(self, row: int) -> Float32Array:
        """As `decode` without drafts, for one row whatever its place; return logits [vocab]."""
        return self.prefill(row, self.tokens[row], start=int(self.lengths[row]))

    def copy_row(self, *, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of a row to another one."""
        self._row(target)[..., :tokens, :] = self._row(source)[..., :tokens, :]

    def swap_rows(self, one: int, other: int, *, tokens: int) -> None:
        """Exchange the first `tokens` positions of two rows."""
        kept = self._row(one)[..., :tokens, :].copy()
        self.copy_row(source=other, target=one, tokens=tokens)
        self._row(other)[..., :tokens, :] = kept

    def release_row(self, row: int) -> None:
        """Give the memory of a row back until it is written again."""
        self._kv.release(row)

    def keep_block(self, block: int, *, row: int, start: int) -> None:
        """Store the block of a row's tokens that begins at `start`."""
        if self._kept is not None:
            self._kept[:, :, block] = self._row(row)[..., start : start + self._block_tokens, :]

    def use_block(self, block: int, *, row: int, start: int) -> None:
        """Write a stored block into a row, its first token at `start`."""
        if self._kept is not None:
            self._row(row)[..., start : start + self._block_tokens, :] = self._kept[:, :, block]

    def _row(self, row: int) -> Float32Array:
        """Return float32 [layers, 2, kv_heads, positions, head_dim]."""
        part: Float32Array = self._kv.array[:, :, self._row_0 + row]
        return part

    def _bind(self, entry: int, *, ids: Int64Array, last: Int32Array) -> Any:
        """Bind the graph to as many entries of the rows' memory, from `entry` on, as ids has rows.

        The arrays must outlive the binding's runs.
        """
        binding = self._session.io_binding()
        for name, array in (
            ("input_ids", ids),
            ("seqlens_k", last),
            ("total_len", self._totals),
            ("logit_tokens", self._logit_tokens),
        ):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        logits = self._logits[: len(ids)]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        shape = (len(ids), *self._kv.array.shape[3:])
        for layer in range(self._architecture.layers):
            for side, name in enumerate(("key", "value")):
                address = self._kv.array[layer, side, entry].ctypes.data
                place = ("cpu", 0, np.float32, shape, address)
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

    def _drafts_are_exact(self, drafted: int) -> bool:
        """Return whether drafted tokens give the same bits as tokens read one by one.

        They do if the runtime writes the keys and values of all tokens of a layer before it reads
        any, which it need not: so it is tried.
        """
        ids = np.arange(1, drafted + 2, dtype=np.int64) % self._architecture.vocab
        start = len(ids)
        self.prefill(0, ids, start=0)
        alone: list[Float32Array] = []
        for place, token in enumerate(ids):
            self.tokens[0, 0], self.lengths[0] = token, start + place
            alone.append(self.decode(1)[0].copy())
        # What a token wrongly reads before it is written must not be right by chance.
        self._row(0)[..., start : start + len(ids), :] = 0
        self.tokens[: len(ids), 0] = ids
        self.lengths[: len(ids)] = start + np.arange(len(ids))
        together = self.decode(1, drafted=drafted)
        self.release_row(0)
        return bool(np.array_equal(together, np.stack(alone)))


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
