"""GGUF files (llama.cpp's format) of decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, ReaderTensor, dequantize

from models.checkpoints.chat import bind_first_token
from models.checkpoints.checkpoint import DecoderShape, Float32Array, TextParts
from models.checkpoints.gguf_config import (
    ARCHITECTURES,
    ROPE_DIVISORS,
    permutes_heads,
    read_shape,
    stored_name,
)
from models.checkpoints.tokenizer import GgufVocabulary, build_tokenizer_json
from models.errors import CheckpointError

_HINT: Final = (
    "use a GGUF file of a Llama, Qwen2, Qwen2.5, Qwen3 or Gemma 3 (text), or a folder with its "
    "Hugging Face checkpoint"
)


def unpermute(rows: Float32Array, *, heads: int) -> Float32Array:
    """Undo llama.cpp's row order of q and k (or of their biases).

    It stores the two halves of a head that the rotary embedding turns together interleaved, row by
    row; the graph wants half after half. Source: `LlamaModel.permute` in llama.cpp's converter.
    """
    half = len(rows) // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape))


class GgufSource:
    """A GGUF file: its weights, and its tokenizer and chat template from the metadata."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._reader = GGUFReader(str(path))
        except (ValueError, KeyError, IndexError, OSError) as error:
            raise self._broken(f"cannot be read: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shape = self._read_shape()
        self._sizes = self.shape.sizes()
        self._refuse_foreign_tensors()
        self._heads = {"q": self.shape.heads, "k": self.shape.kv_heads}
        self._heads |= {f"{name}_bias": heads for name, heads in self._heads.items()}

    @property
    def checkpoint(self) -> GgufSource:
        """Itself."""
        return self

    @property
    def licence(self) -> str | None:
        """As the file states it."""
        named = self._optional("general.license")
        known = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
        return known.get(str(named), str(named)) if named else None

    def weight(self, name: str) -> Float32Array:
        """Return one weight, dequantised, q and k in the graph's row order."""
        stored = stored_name(name)
        if stored not in self._tensors:
            raise self._broken(f"has no tensor {stored}")
        weight = self._read(stored)
        if weight.shape != self._sizes[name]:
            raise self._broken(f"stores {stored} as {weight.shape}, not {self._sizes[name]}")
        heads = self._heads.get(name.rpartition(".")[2])
        if heads is None or not permutes_heads(self._optional):
            return weight
        return unpermute(weight, heads=heads)

    def _read(self, stored: str) -> Float32Array:
        tensor = self._tensors[stored]
        try:
            flat = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise self._broken(f"{stored}: {error}") from error
        return flat.astype(np.float32).reshape(_size_of(tensor))

    def text_parts(self) -> TextParts:
        """Build the tokenizer from the vocabulary in the metadata."""
        vocabulary = GgufVocabulary(
            model=str(self._required("tokenizer.ggml.model")),
            tokens=self._required("tokenizer.ggml.tokens"),
            kinds=self._required("tokenizer.ggml.token_type"),
            merges=self._optional("tokenizer.ggml.merges") or [],
            scores=self._optional("tokenizer.ggml.scores") or [],
            pre_tokenizer=str(self._optional("tokenizer.ggml.pre") or "default"),
            # Only a file that says otherwise does without it.
            adds_space=self._optional("tokenizer.ggml.add_space_prefix") in {None, True},
        )
        return TextParts(
            tokenizer_json=build_tokenizer_json(vocabulary),
            chat_template=self._chat_template(vocabulary.tokens),
            stop_tokens=self._stop_tokens(),
        )

    def _chat_template(self, tokens: list[str]) -> str:
        template = str(self._required("tokenizer.chat_template"))
        first = self._optional("tokenizer.ggml.bos_token_id")
        return template if first is None else bind_first_token(template, tokens[int(first)])

    def _stop_tokens(self) -> tuple[int, ...]:
        """The end of a text and, where a chat ends its turns with another token, that one."""
        end = int(self._required("tokenizer.ggml.eos_token_id"))
        turn = self._optional("tokenizer.ggml.eot_token_id")
        return (end,) if turn in {None, end} else (end, int(turn))

    def _read_shape(self) -> DecoderShape:
        architecture = self._required("general.architecture")
        if architecture not in ARCHITECTURES:
            raise self._broken(f"is of architecture {architecture}, which is not known here")
        sizes = {name: _size_of(tensor) for name, tensor in self._tensors.items()}
        divisors: tuple[float, ...] = ()
        if ROPE_DIVISORS in self._tensors:
            divisors = tuple(self._read(ROPE_DIVISORS).tolist())
        try:
            return read_shape(self._optional, sizes, divisors)
        except KeyError as error:
            raise self._broken(f"does not state {error}") from error
        except (TypeError, ValueError) as error:
            raise self._broken(f"has metadata without a usable {error}") from error

    def _refuse_foreign_tensors(self) -> None:
        """A tensor that nobody reads would change the answers by being left out."""
        known = {ROPE_DIVISORS, *map(stored_name, self._sizes)}
        foreign = sorted(self._tensors.keys() - known)
        if foreign:
            raise self._broken(f"has {foreign[0]}, which the graph builder does not know")

    def _required(self, key: str) -> Any:
        value = self._optional(key)
        if value is None:
            raise self._broken(f"does not state {key}")
        return value

    def _optional(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path.name} {what}", hint=_HINT)


def _size_of(tensor: ReaderTensor) -> tuple[int, ...]:
    """Return [rows, columns]: GGUF names the fastest dimension first."""
    return tuple(int(length) for length in tensor.shape[::-1])
