"""onnxruntime sessions: which provider computes, and with how many threads.

Beside `onnx_graph` the only importer of onnxruntime on a board.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort
import psutil

from edge_worker.core.batching import EngineSettings
from edge_worker.ports import ModelError

REBUILD_HINT = "build or fetch the model again"


def count_cores() -> int:
    """Return the physical cores this process may use.

    Two threads on one core slow each other's matrix products down.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


def open_session(path: Path, settings: EngineSettings) -> ort.InferenceSession:
    """Load a graph. Raises ModelError: it is missing, damaged, or the provider is."""
    provider = _find_provider(settings.provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads or count_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not path.is_file():
        raise ModelError(f"{path} is missing", code="model_missing", hint=REBUILD_HINT)
    try:
        return ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(
            f"{path} cannot be loaded: {error}", code="model_damaged", hint=REBUILD_HINT
        ) from error


def _find_provider(name: str) -> str:
    available: dict[str, str] = {
        provider.removesuffix("ExecutionProvider").lower(): provider
        for provider in ort.get_available_providers()
    }
    provider = available.get(name.lower().removesuffix("executionprovider"))
    if provider is None:
        raise ModelError(
            f"this onnxruntime has no execution provider {name!r}",
            code="provider_missing",
            hint=f"install a build that has it, or set one of: {', '.join(sorted(available))}",
        )
    return provider
