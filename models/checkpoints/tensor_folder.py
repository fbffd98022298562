"""The tensors of a folder's safetensors files, read with numpy alone.

The `safetensors` library has no bfloat16 for numpy, and the format is a JSON header before the raw
numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from models.checkpoints.checkpoint import Float32Array
from models.errors import CheckpointError

_HEADER_LENGTH_BYTES: Final = 8
_HEADER_MAX_BYTES: Final = 100_000_000
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
}


def _eight_bit_floats() -> Float32Array:
    """Return the numbers that the 256 codes of FP8 E4M3 stand for (arXiv 2209.05433)."""
    codes = np.arange(256)
    exponents, parts = codes >> 3 & 15, codes & 7
    sizes = np.where(exponents == 0, parts * 2.0**-9, (1 + parts / 8) * 2.0 ** (exponents - 7))
    sizes[[127, 255]] = np.nan
    return np.asarray(np.where(codes < 128, sizes, -sizes), np.float32)


EIGHT_BIT_FLOATS: Final = _eight_bit_floats()


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class TensorFolder:
    """A folder's `*.safetensors` files; whatever is wrong with them is a CheckpointError.

    Attributes:
        names: Of all tensors, as the files have them.
    """

    def __init__(self, folder: Path, *, hint: str) -> None:
        """Read the headers. `hint`: what to do about an unusable checkpoint."""
        self._folder = folder
        self._hint = hint
        self._tensors: dict[str, tuple[Path, int, _Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._read_header(path)
        if not self._tensors:
            raise self.broken("has no *.safetensors file")
        self.names = frozenset(self._tensors)

    def weight(self, name: str) -> Float32Array:
        """Return one tensor in 32-bit floats."""
        if name not in self._tensors:
            raise self.broken(f"has no tensor {name}")
        path, start, tensor = self._tensors[name]
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            raise self.broken(f"stores {name} as {tensor.dtype}")
        begin, end = tensor.data_offsets
        count = int(np.prod(tensor.shape))
        if end - begin != count * dtype.itemsize:
            raise self.broken(f"gives {name} a wrong size")
        try:
            raw = np.fromfile(path, dtype, count=count, offset=start + begin)
        except OSError as error:
            raise self.broken(f"cannot be read: {error}") from error
        if raw.size != count:
            raise self.broken(f"is cut off in {name}")
        if tensor.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        elif tensor.dtype == "F8_E4M3":
            raw = EIGHT_BIT_FLOATS[raw]
        return np.asarray(raw.astype(np.float32).reshape(tensor.shape))

    def broken(self, what: str) -> CheckpointError:
        """Return the error that says what is wrong with the checkpoint."""
        return CheckpointError(f"the checkpoint {self._folder.name} {what}", hint=self._hint)

    def _read_header(self, path: Path) -> None:
        try:
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(_HEADER_LENGTH_BYTES), "little")
                if length > _HEADER_MAX_BYTES:
                    raise self.broken(f"has a damaged {path.name}")
                header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            tensors = msgspec.convert(header, dict[str, _Tensor])
        except (OSError, ValueError, AttributeError, msgspec.ValidationError) as error:
            raise self.broken(f"has a damaged {path.name}: {error}") from error
        start = _HEADER_LENGTH_BYTES + length
        self._tensors |= {name: (path, start, tensor) for name, tensor in tensors.items()}
