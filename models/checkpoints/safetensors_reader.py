"""Hugging Face checkpoint folders of decoders: config.json, safetensors files, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from models.checkpoints.chat import bind_first_token
from models.checkpoints.checkpoint import Float32Array, TextParts
from models.checkpoints.hf_config import (
    SUPPORTED,
    read_shape,
    refuse_foreign_tensors,
    stored_name,
    stores_gains_less_one,
)
from models.checkpoints.tensor_folder import TensorFolder
from models.errors import CheckpointError

_HINT: Final = f"use a complete checkpoint of {SUPPORTED}, with safetensors weights"


class FolderSource:
    """A checkpoint folder as `save_pretrained` leaves it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._json("config.json")
        self._adds_one = stores_gains_less_one(self._config)
        self._tensors = TensorFolder(folder, hint=_HINT)
        self.shape = read_shape(folder.name, self._config, self._tensors.names)
        self._sizes = self.shape.sizes()
        refuse_foreign_tensors(folder.name, self.shape, self._tensors.names)

    @property
    def checkpoint(self) -> FolderSource:
        """Itself."""
        return self

    @property
    def licence(self) -> str | None:
        """A checkpoint folder states none."""
        return None

    def weight(self, name: str) -> Float32Array:
        """Return one weight; q and k lie in the graph's row order already."""
        stored = stored_name(name, has_sandwich_norms=self.shape.has_sandwich_norms)
        weight = self._tensors.weight(stored)
        if weight.shape != self._sizes[name]:
            raise self._broken(f"stores {stored} as {weight.shape}, not {self._sizes[name]}")
        is_gain = name.endswith("norm")
        return weight + np.float32(1) if is_gain and self._adds_one else weight

    def text_parts(self) -> TextParts:
        """Take the tokenizer and the template as they are."""
        tokenizer = self._folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise self._broken("has no tokenizer.json")
        return TextParts(
            tokenizer_json=tokenizer.read_text("utf-8"),
            chat_template=self._chat_template(),
            stop_tokens=self._stop_tokens(),
        )

    def _chat_template(self) -> str:
        beside = self._folder / "chat_template.jinja"
        config = self._json("tokenizer_config.json", optional=True)
        template = beside.read_text("utf-8") if beside.is_file() else config.get("chat_template")
        if not isinstance(template, str):
            raise self._broken("has no chat template")
        first = config.get("bos_token")
        # Older files describe a token by a table.
        named = first.get("content") if isinstance(first, dict) else first
        return bind_first_token(template, str(named)) if named else template

    def _stop_tokens(self) -> tuple[int, ...]:
        for origin in (self._json("generation_config.json", optional=True), self._config):
            stop = origin.get("eos_token_id")
            if stop is not None:
                return tuple(stop) if isinstance(stop, list) else (int(stop),)
        raise self._broken("names no eos_token_id")

    def _json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        path = self._folder / name
        if optional and not path.is_file():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise self._broken(f"has no readable {name}: {error}") from error

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"the checkpoint {self._folder.name} {what}", hint=_HINT)
