"""A LoRA adapter, as PEFT saves it, merged into a checkpoint's weights.

A layer's matrix W [outputs, inputs] becomes W + scale x B @ A with A [r, inputs] and
B [outputs, r]. An adapter may leave out matrices and layers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.cache import hash_file, hash_key
from models.catalog import AdapterSource
from models.checkpoints.checkpoint import Checkpoint, DecoderShape, Float32Array, layer_weight
from models.checkpoints.hf_config import PROJECTIONS
from models.checkpoints.tensor_folder import TensorFolder
from models.errors import CheckpointError, ChecksumError

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
_HINT: Final = "save it with PEFT, as a plain LoRA adapter of the layers' projections"
_SAME: Final = 1e-9
_TENSOR: Final = re.compile(
    r"^base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_(A|B)(?:\.default)?\.weight$"
)
_PARTS: Final = {module: part for part, module in PROJECTIONS.items()}


def tensor_name(name: str, half: str) -> str:
    """Return what PEFT calls the half `A` or `B` of the change of a layer's matrix."""
    _, layer, part = name.split(".")
    return f"base_model.model.model.layers.{layer}.{PROJECTIONS[part]}.lora_{half}.weight"


def tensor_of(stored: str) -> tuple[str, str]:
    """Return the canonical name and the half that a tensor belongs to.

    Raises:
        KeyError: It changes no projection of a layer.
    """
    match = _TENSOR.match(stored)
    if match is None:
        raise KeyError(stored)
    return layer_weight(int(match[1]), _PARTS[match[2]]), match[3]


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of `adapter_config.json` decides what the tensors mean."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether B @ A, all with one scale, is all there is to it."""
        ranks, alphas = self.rank_pattern or {}, self.alpha_pattern or {}
        has_one_scale = ranks.keys() == alphas.keys() and all(
            rank > 0 and abs(alphas[name] / rank - self.lora_alpha / self.r) < _SAME
            for name, rank in ranks.items()
        )
        return (
            self.peft_type == "LORA"
            and self.bias == "none"
            and self.r > 0
            and has_one_scale
            and not (ranks and self.use_rslora)
            and not (self.use_dora or self.fan_in_fan_out or self.modules_to_save)
        )


class Adapter:
    """The adapter in a folder.

    Attributes:
        scale: What B @ A is multiplied by.
        names: Canonical names of the matrices it changes.
    """

    def __init__(self, folder: Path) -> None:
        """Read it; raises CheckpointError where it is none, or more than plain LoRA."""
        self._tensors = TensorFolder(folder, hint=_HINT)
        config = self._config(folder)
        if not config.is_plain:
            raise self._tensors.broken("is not a plain LoRA adapter")
        self.scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        self._stored: dict[str, dict[str, str]] = {}
        for stored in sorted(self._tensors.names):
            self._file(stored)
        self.names = frozenset(self._stored)

    def delta(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Return what is added to a matrix of that shape.

        In 64 bits: sums of so few products of 16-bit numbers are exact there, so that every
        machine merges the same weights, bit for bit.
        """
        down, up = (half.astype(np.float64) for half in self._halves(name))
        wanted = ((len(down), shape[-1]), (shape[0], len(down)))
        if (down.shape, up.shape) != wanted:
            raise self._tensors.broken(
                f"changes {name} by {up.shape} x {down.shape}, but it has the shape {shape}"
            )
        return np.asarray(self.scale * (up @ down))

    def factors(self, name: str) -> tuple[Float32Array, Float32Array]:
        """Return A [r, inputs] and B [outputs, r] of a matrix, the scale in B."""
        down, up = self._halves(name)
        return down, up * np.float32(self.scale)

    def refuse_missing(self, layers: int) -> None:
        """Raise CheckpointError where it changes a layer that a model of so many has not."""
        beyond = [name for name in self.names if int(name.split(".")[1]) >= layers]
        if beyond:
            raise self._tensors.broken(f"changes {min(beyond)}, of a model of {layers} layers")

    def _halves(self, name: str) -> tuple[Float32Array, Float32Array]:
        pair = self._stored[name]
        if len(pair) != 2:
            raise self._tensors.broken(f"has only one half of {name}")
        return self._tensors.weight(pair["A"]), self._tensors.weight(pair["B"])

    def _config(self, folder: Path) -> _Config:
        try:
            return msgspec.json.decode((folder / ADAPTER_CONFIG).read_bytes(), type=_Config)
        except (OSError, msgspec.DecodeError) as error:
            raise self._tensors.broken(f"has no usable {ADAPTER_CONFIG}: {error}") from error

    def _file(self, stored: str) -> None:
        try:
            name, half = tensor_of(stored)
        except KeyError as error:
            what = f"changes {stored}, which is no projection of a layer"
            raise self._tensors.broken(what) from error
        self._stored.setdefault(name, {})[half] = stored


class AdaptedCheckpoint:
    """The checkpoint with an adapter merged into it."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        adapter.refuse_missing(checkpoint.shape.layers)
        self._checkpoint = checkpoint
        self._adapter = adapter

    @property
    def shape(self) -> DecoderShape:
        """Its sizes, which no adapter changes."""
        return self._checkpoint.shape

    def weight(self, name: str) -> Float32Array:
        """Return one weight, merged; raises CheckpointError where the shapes do not fit."""
        weight = self._checkpoint.weight(name)
        if name not in self._adapter.names:
            return weight
        return np.asarray(weight + self._adapter.delta(name, weight.shape), np.float32)


def adapter_folder(source: AdapterSource) -> Path:
    """Return the adapter's folder, its weights checked.

    Raises:
        CheckpointError: It is not there.
        ChecksumError: Other bytes than the recipe promises.
    """
    folder = Path(__file__).parents[1] / Path(source.path).expanduser()
    try:
        digest = hash_file(folder / ADAPTER_WEIGHTS)
    except OSError as error:
        raise CheckpointError(
            f"the adapter {folder} cannot be read: {error.strerror}",
            hint="make it with `python -m models distill`, or name another one in the recipe",
        ) from error
    if source.sha256 not in {None, digest}:
        raise ChecksumError(
            f"{folder / ADAPTER_WEIGHTS} has SHA-256 {digest}, not the expected {source.sha256}",
            hint="restore the file, or name its hash in the recipe",
        )
    return folder


def hash_adapter(folder: Path) -> str:
    """Return one SHA-256 over all that decides what the adapter adds."""
    return hash_key(hash_file(folder / ADAPTER_CONFIG), hash_file(folder / ADAPTER_WEIGHTS))
