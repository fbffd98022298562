"""Checkpoint folders of BERT-like sentence encoders, as sentence-transformers leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from models.checkpoints.checkpoint import Float32Array
from models.checkpoints.tensor_folder import TensorFolder
from models.errors import CheckpointError

EMBEDDING: Final = "embeddings.word_embeddings.weight"
POSITIONS: Final = "embeddings.position_embeddings.weight"
SEGMENTS: Final = "embeddings.token_type_embeddings.weight"
EMBEDDING_NORM: Final = "embeddings.LayerNorm"
# Below `encoder.layer.N.`; each has a `.weight` and a `.bias`.
QUERY: Final = "attention.self.query"
KEY: Final = "attention.self.key"
VALUE: Final = "attention.self.value"
ATTENTION_OUT: Final = "attention.output.dense"
ATTENTION_NORM: Final = "attention.output.LayerNorm"
UP: Final = "intermediate.dense"
DOWN: Final = "output.dense"
DOWN_NORM: Final = "output.LayerNorm"

_HINT: Final = "use a complete sentence-transformers folder of a BERT model with mean pooling"


def layer_part(layer: int, part: str) -> str:
    """Return a part's name in one layer, without `.weight` or `.bias`."""
    return f"encoder.layer.{layer}.{part}"


class EncoderShape(msgspec.Struct, frozen=True, kw_only=True):
    """The shapes of a BERT-like encoder.

    Attributes:
        max_tokens: Longest text it was made for, the two marks at its ends included.
    """

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocab: int
    max_tokens: int
    norm_epsilon: float


class EncoderFolder:
    """An encoder's checkpoint folder.

    Raises:
        CheckpointError: Incomplete, damaged, not BERT, or pooled in another way than by the mean.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._json("config.json")
        self._tensors = TensorFolder(folder, hint=_HINT)
        self._refuse_foreign()
        self.shape = self._read_shape()

    def weight(self, name: str) -> Float32Array:
        """Return one tensor by its name in the checkpoint."""
        return self._tensors.weight(name)

    def tokenizer_json(self) -> str:
        """Return the tokenizer as it is stored."""
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise self._tensors.broken("has no tokenizer.json")
        return path.read_text("utf-8")

    def _refuse_foreign(self) -> None:
        config = self._config
        kind = config.get("model_type")
        if kind != "bert":
            raise self._tensors.broken(f"is of type {kind}, which the graph builder does not know")
        positions = config.get("position_embedding_type", "absolute")
        if config.get("hidden_act") != "gelu" or positions != "absolute":
            raise self._tensors.broken("has another activation than GELU, or relative positions")
        pooling = self._json("1_Pooling/config.json", optional=True)
        if not pooling.get("pooling_mode_mean_tokens", True):
            raise self._tensors.broken("does not pool by the mean over the tokens")

    def _read_shape(self) -> EncoderShape:
        config = self._config
        limits = self._json("sentence_bert_config.json", optional=True)
        try:
            positions = int(config["max_position_embeddings"])
            return EncoderShape(
                layers=int(config["num_hidden_layers"]),
                hidden=int(config["hidden_size"]),
                heads=int(config["num_attention_heads"]),
                feed_forward=int(config["intermediate_size"]),
                vocab=int(config["vocab_size"]),
                max_tokens=min(positions, int(limits.get("max_seq_length") or positions)),
                norm_epsilon=float(config["layer_norm_eps"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._tensors.broken(f"has a config.json without a usable {error}") from error

    def _json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        path = self._folder / name
        if optional and not path.is_file():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(
                f"the checkpoint {self._folder.name} has no readable {name}: {error}", hint=_HINT
            ) from error
