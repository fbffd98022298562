"""LoRA adapters as pairs of matrices: added, cut down to the layers of a student, written.

Two adapters side by side are one of the sum of their ranks: A1 over A2 and B1 beside B2 give
B1 @ A1 + B2 @ A2. So a student that begins with an adapter in its weights and learns another one
ends with one adapter for the checkpoint that both began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, tensor_name
from models.checkpoints.checkpoint import Float32Array, layer_weight

LowRank: TypeAlias = Mapping[str, tuple[Float32Array, Float32Array]]
"""By the canonical name of a matrix: A [r, inputs] and B [outputs, r]; B @ A is added to it."""

_ALIGNMENT_BYTES: Final = 8


def read_low_rank(adapter: Adapter) -> LowRank:
    """Return an adapter's pairs, its scale in B."""
    return {name: adapter.factors(name) for name in sorted(adapter.names)}


def of_layers(adapter: LowRank, keep: Sequence[int]) -> LowRank:
    """Return what changes these layers, counted anew from 0."""
    places = {layer: place for place, layer in enumerate(keep)}
    kept = {}
    for name, pair in adapter.items():
        _, layer, part = name.split(".")
        if int(layer) in places:
            kept[layer_weight(places[int(layer)], part)] = pair
    return kept


def combine_adapters(first: LowRank, second: LowRank) -> LowRank:
    """Return the adapter that adds what both add."""
    together = dict(first)
    for name, (down, up) in second.items():
        if name not in first:
            together[name] = (down, up)
            continue
        above, beside = first[name]
        together[name] = (np.concatenate([above, down]), np.concatenate([beside, up], axis=1))
    return together


def write_adapter(folder: Path, adapter: LowRank, *, scale: float = 1.0) -> None:
    """Write it as PEFT does, in 16-bit floats; the same adapter gives the same bytes.

    Args:
        folder: Is there.
        adapter: A pair of a lower rank than others is filled up with zeros, as a file has one rank.
        scale: What a reader multiplies by; B is divided by it. With a power of two nothing is lost.
    """
    rank = max(len(down) for down, _ in adapter.values())
    tensors: dict[str, npt.NDArray[np.float16]] = {}
    for name, (down, up) in adapter.items():
        spare = rank - len(down)
        wide_down, wide_up = np.pad(down, ((0, spare), (0, 0))), np.pad(up, ((0, 0), (0, spare)))
        tensors[tensor_name(name, "A")] = wide_down.astype("<f2")
        tensors[tensor_name(name, "B")] = (wide_up / np.float32(scale)).astype("<f2")
    _write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    config = _config(tensors, rank, scale * rank)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(f"{text}\n", "utf-8")


def _config(tensors: Mapping[str, object], rank: int, alpha: float) -> dict[str, Any]:
    """Return what PEFT needs to load it; everything else is its default."""
    modules = sorted({name.split(".")[-3] for name in tensors})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "r": rank,
        "target_modules": modules,
    }


def _write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[np.float16]]) -> None:
    """Write a safetensors file: the length of a JSON header, the header, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_ALIGNMENT_BYTES, "little") + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
