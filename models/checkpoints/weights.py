"""The weights a recipe asks for: the source's, without pruned layers, with its adapter merged."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import numpy as np

from models.cache import hash_key
from models.catalog import Recipe
from models.checkpoints.adapter import AdaptedCheckpoint, Adapter, adapter_folder, hash_adapter
from models.checkpoints.checkpoint import (
    Checkpoint,
    Float32Array,
    KeptWeights,
    SourceModel,
    layer_weight,
)
from models.checkpoints.gguf_reader import GgufSource
from models.checkpoints.safetensors_reader import FolderSource
from models.errors import RecipeError

_BYTES_PER_FP32: Final = 4
_KEPT_MAX_BYTES: Final = 1_000_000_000


class PrunedCheckpoint:
    """The checkpoint with some of its layers, counted anew from 0."""

    def __init__(self, checkpoint: Checkpoint, keep: tuple[int, ...]) -> None:
        layers = checkpoint.shape.layers
        if list(keep) != sorted(set(keep)) or keep[-1] >= layers:
            raise RecipeError(
                f"[layers] keep = {list(keep)} does not count up through 0 to {layers - 1}",
                hint="name each layer once, in order",
            )
        self._checkpoint = checkpoint
        self._keep = keep
        self.shape = checkpoint.shape.with_layers(keep)

    def weight(self, name: str) -> Float32Array:
        """Return one weight."""
        if not name.startswith("layers."):
            return self._checkpoint.weight(name)
        _, layer, part = name.split(".")
        return self._checkpoint.weight(layer_weight(self._keep[int(layer)], part))


class WideCheckpoint:
    """The checkpoint in 64-bit floats: what is decided by its sums is the same on every machine."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.shape = checkpoint.shape

    def weight(self, name: str) -> Float32Array:
        """Return one weight, twice as wide as its type says."""
        # numpy's rules carry the width through every sum that follows.
        return cast("Float32Array", self._checkpoint.weight(name).astype(np.float64))


def open_source(path: Path) -> SourceModel:
    """Open a GGUF file or a checkpoint folder; raises CheckpointError."""
    return FolderSource(path) if path.is_dir() else GgufSource(path)


def recipe_checkpoint(recipe: Recipe, source: SourceModel) -> Checkpoint:
    """Return the recipe's weights; those of a small model are read once and kept.

    Raises:
        CheckpointError, ChecksumError: The adapter is not there, damaged, or of another model.
        RecipeError: It keeps layers that the source has not.
    """
    checkpoint = source.checkpoint
    if recipe.layers is not None:
        checkpoint = PrunedCheckpoint(checkpoint, recipe.layers.keep)
    if recipe.adapter is not None:
        checkpoint = AdaptedCheckpoint(checkpoint, Adapter(adapter_folder(recipe.adapter)))
    size_bytes = checkpoint.shape.parameters() * _BYTES_PER_FP32
    return KeptWeights(checkpoint) if size_bytes <= _KEPT_MAX_BYTES else checkpoint


def hash_weights(recipe: Recipe, source_sha256: str) -> str:
    """Return one SHA-256 over all that decides `recipe_checkpoint`."""
    adapter = recipe.adapter and hash_adapter(adapter_folder(recipe.adapter))
    return hash_key(source_sha256, recipe.layers and recipe.layers.keep, adapter)
