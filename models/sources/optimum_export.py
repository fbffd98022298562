"""The other way to ONNX: optimum's exporter, for architectures the graph builder does not know.

Its graph has optimum's own inputs (an attention mask, positions, a cache that grows by copying), so
workers do not load it; it serves to compare and to inspect. Needs the extra `models` (torch).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from models.errors import CheckpointError, MissingExtraError, writing

_TASK: Final = "text-generation-with-past"
_GRAPH: Final = "model.onnx"
_QUANTIZED: Final = "model_quantized.onnx"


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        graph: The 32-bit graph.
        quantized: The same with 8-bit weights, quantised as ONNX Runtime does it dynamically.
    """

    graph: str
    quantized: str
    graph_bytes: int
    quantized_bytes: int


def export_with_optimum(checkpoint: str, out: Path) -> ExportReport:
    """Export a checkpoint folder or Hub name to `out`, then quantise it to 8 bits.

    Raises:
        MissingExtraError: optimum or torch is not installed.
        CheckpointError: The exporter refuses the checkpoint.
    """
    try:
        # The extra `models` is large and optional, so only this function imports it.
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
        from optimum.exporters.onnx import main_export  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"optimum's exporter needs {error.name}", hint="pip install 'edgefleet[models]'"
        ) from error
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        main_export(checkpoint, output=out, task=_TASK)
    except Exception as error:
        # transformers and optimum raise whatever a checkpoint makes them stumble over.
        raise CheckpointError(
            f"optimum cannot export {checkpoint}: {error}",
            hint="name a folder or Hub checkpoint of a causal language model",
        ) from error
    graph, quantized = out / _GRAPH, out / _QUANTIZED
    # Unsigned: signed 8-bit weights saturate on AVX2 CPUs without VNNI and answer garbage.
    quantize_dynamic(graph, quantized, weight_type=QuantType.QUInt8, per_channel=True)
    return ExportReport(
        graph=str(graph),
        quantized=str(quantized),
        graph_bytes=_size_bytes(graph),
        quantized_bytes=_size_bytes(quantized),
    )


def _size_bytes(graph: Path) -> int:
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
