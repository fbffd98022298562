"""LoRA adapters as pairs of matrices: read, cut down to the layers of a student, written."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, tensor_name
from models.checkpoints.checkpoint import Float32Array, layer_weight
from models.checkpoints.tensor_folder import EIGHT_BIT_FLOATS

LowRank: TypeAlias = Mapping[str, tuple[Float32Array, Float32Array]]
"""By the canonical name of a matrix: A [r, inputs] and B [outputs, r]; B @ A is added to it."""

_ALIGNMENT_BYTES: Final = 8
_HEADER_BYTES: Final = 100_000
"""At most: what a file says of some hundred tensors."""
_LARGEST_EIGHT_BIT: Final = 448.0


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


def fit_adapter(adapter: LowRank, size_bytes: int) -> LowRank:
    """Keep the directions that do most for their bytes, whatever matrix they are of.

    Args:
        adapter: Directions of each pair by falling strength, the columns of B as strong as they
            are, as `models.distill.cut` leaves them.
        size_bytes: Of all numbers, one byte each.
    """
    directions = [
        (float(strength) ** 2 / (len(up) + down.shape[1]), name, len(up) + down.shape[1])
        for name, (down, up) in adapter.items()
        for strength in np.square(up).sum(axis=0)
    ]
    ranks, left = dict.fromkeys(adapter, 0), size_bytes
    for _, name, cost in sorted(directions, reverse=True):
        if cost > left:
            break
        ranks[name] += 1
        left -= cost
    return {
        name: (adapter[name][0][:rank], adapter[name][1][:, :rank])
        for name, rank in ranks.items()
        if rank
    }


def write_adapter(
    folder: Path, adapter: LowRank, *, scale: float = 1.0, megabytes: float | None = None
) -> None:
    """Write it as PEFT does, in 16-bit floats; the same adapter gives the same bytes.

    Args:
        folder: Is there.
        adapter: Pairs of any ranks; PEFT is told those that are not the most frequent one.
        scale: What a reader multiplies by; B is divided by it. With a power of two nothing is lost.
        megabytes: Size that the file may have: the directions that matter least are left out, and
            the others kept in 8-bit floats. Makes a scale of its own.
    """
    form: np.dtype[Any] = np.dtype("<f2")
    if megabytes is not None:
        form = np.dtype("u1")
        adapter = fit_adapter(adapter, int(megabytes * 1e6) - _HEADER_BYTES)
        largest = max(float(np.abs(half).max()) for pair in adapter.values() for half in pair)
        scale = 4.0 ** -math.floor(math.log2(_LARGEST_EIGHT_BIT / largest))
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, (down, up) in adapter.items():
        grown = np.float32(1 if megabytes is None else scale**-0.5)
        tensors[tensor_name(name, "A")] = _stored(down * grown, form)
        tensors[tensor_name(name, "B")] = _stored(up / np.float32(scale) / grown, form)
    _write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    ranks = {name: len(down) for name, (down, _) in adapter.items()}
    text = json.dumps(_config(ranks, scale), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(f"{text}\n", "utf-8")


def _stored(half: Float32Array, form: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return it in 16-bit floats, or as the nearest 8-bit ones' codes."""
    if form.itemsize > 1:
        return half.astype(form)
    sizes = EIGHT_BIT_FLOATS[:127]
    codes = np.searchsorted((sizes[1:] + sizes[:-1]) / 2, np.abs(half))
    return np.where(half < 0, codes + 128, codes).astype(form)


def _config(ranks: Mapping[str, int], scale: float) -> dict[str, Any]:
    """Return what PEFT needs to load it; everything else is its default."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module_name(name): rank for name, rank in sorted(ranks.items()) if rank != usual}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": _plain(scale * usual),
        "lora_dropout": 0.0,
        "r": usual,
        "target_modules": sorted({module_name(name).rpartition(".")[2] for name in ranks}),
    }
    if others:
        config["rank_pattern"] = others
        config["alpha_pattern"] = {name: _plain(scale * rank) for name, rank in others.items()}
    return config


def module_name(name: str) -> str:
    """Return the end of a matrix's module name, as PEFT's patterns are compared with."""
    return tensor_name(name, "A").removeprefix("base_model.model.model.").rpartition(".lora_")[0]


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number


def _write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a safetensors file: the length of a JSON header, the header, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        kind = "F16" if tensors[name].itemsize > 1 else "F8_E4M3"
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_ALIGNMENT_BYTES, "little") + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
