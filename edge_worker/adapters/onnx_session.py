"""onnxruntime sessions: which provider computes, and with how many threads.

Beside `onnx_graph` the only importer of onnxruntime on a board. External weights are mapped, not
read: of their pages the system may drop what it likes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime as ort
import psutil

from edge_worker.core.batching import EngineSettings
from edge_worker.ports import ModelError

REBUILD_HINT = "build or fetch the model again"
AUTO: Final = "auto"
"""The setting that leaves the choice to what is installed, and to a measurement."""
_SUFFIX: Final = "executionprovider"
_HOW_TO_GET: Final = {
    "cuda": "on a Jetson: NVIDIA's onnxruntime-gpu wheel for its JetPack instead of onnxruntime; "
    "elsewhere: pip install onnxruntime-gpu",
    "tensorrt": "it would not help: TensorRT has neither GroupQueryAttention nor MatMulNBits and "
    "hands both to CUDA or the CPU; set provider to `auto`",
}


def runtime_version() -> str:
    """Return onnxruntime's version: another one has other kernels."""
    return str(ort.__version__)


def available_providers() -> tuple[str, ...]:
    """Return the short names of what this build of onnxruntime was made with, e.g. `cpu`."""
    return tuple(_short(name) for name in ort.get_available_providers())


def count_cores() -> int:
    """Return the physical cores this process may use.

    Two threads on one core slow each other's matrix products down.
    """
    return max(1, min(psutil.cpu_count(logical=False) or 1, count_logical_cores()))


def count_logical_cores() -> int:
    """Return the hardware threads this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def choose_providers(wanted: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return the short names worth trying, the safest one first.

    `auto` is the CPU, and CUDA beside it where the build has it; which is faster on a small model
    is for a measurement to say. TensorRT is taken only if it is asked for by name.

    Raises:
        ModelError: `provider_missing`, and how to get it.
    """
    name = _short(wanted)
    if name == AUTO:
        return ("cpu", "cuda") if "cuda" in available else ("cpu",)
    if name in available:
        return (name,)
    others = f"set one of: {', '.join(sorted({AUTO, *available}))}"
    raise ModelError(
        f"this onnxruntime has no execution provider {wanted!r}",
        code="provider_missing",
        hint=f"{_HOW_TO_GET.get(name, 'install a build that has it')}; or {others}",
    )


def open_session(
    path: Path,
    settings: EngineSettings,
    *,
    graph: bytearray | None = None,
    weights: Mapping[str, bytearray] | None = None,
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        path: The file; it need not be there if `graph` is given.
        settings: What it may use of the machine.
        graph: Its bytes, where they are in no file.
        weights: The same for its external data, by the names that the graph calls them; the
            runtime copies what it needs of them.

    Raises:
        ModelError: It is missing, damaged, or the provider does not work; `runtime_too_old`.
    """
    wanted = choose_providers(settings.provider, available_providers())[0]
    names = {_short(name): name for name in ort.get_available_providers()}
    # What a device has no kernel for runs on the next one.
    line = ["tensorrt", "cuda", "cpu"] if wanted == "tensorrt" else [wanted, "cpu"]
    providers = [names[name] for name in dict.fromkeys(line) if name in names]
    if graph is None and not path.is_file():
        raise ModelError(f"{path} is missing", code="model_missing", hint=REBUILD_HINT)
    options = _options(settings)
    if weights:
        _give(options, weights)
    source = str(path) if graph is None else bytes(graph)
    try:
        session = ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(
            f"{path} cannot be loaded: {error}", code="model_damaged", hint=REBUILD_HINT
        ) from error
    if session.get_providers()[0] != providers[0]:
        # It falls back in silence where, for one, the driver is missing.
        raise ModelError(
            f"the execution provider {wanted!r} is installed but does not start here",
            code="provider_failed",
            hint="check its driver and libraries, or set provider to `cpu`",
        )
    return session


def _give(options: ort.SessionOptions, weights: Mapping[str, bytearray]) -> None:
    give = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if give is None:
        raise ModelError(
            f"onnxruntime {ort.__version__} takes no weights from memory: the model is sealed",
            code="runtime_too_old",
            hint="take onnxruntime 1.24 or later on this board, or a model that is not sealed",
        )
    give(list(weights), list(weights.values()), [len(data) for data in weights.values()])


def _options(settings: EngineSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads or count_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _short(name: str) -> str:
    return name.lower().removesuffix(_SUFFIX)
