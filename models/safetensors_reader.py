"""Hugging Face checkpoint folders of Llama-like models: config.json and safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from models.checkpoint import EMBEDDING, FINAL_NORM, HEAD, Float32Array, LlamaShape, TextParts
from models.errors import CheckpointError
from models.tensor_folder import TensorFolder

HF_TOP_NAMES: Final[dict[str, str]] = {
    EMBEDDING: "model.embed_tokens.weight",
    HEAD: "lm_head.weight",
    FINAL_NORM: "model.norm.weight",
}
HF_LAYER_NAMES: Final[dict[str, str]] = {
    "attention_norm": "input_layernorm.weight",
    "feed_forward_norm": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_HINT: Final = "use a complete checkpoint of a Llama-like model, with safetensors weights"


class FolderSource:
    """A checkpoint folder as `save_pretrained` leaves it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._json("config.json")
        self._tensors = TensorFolder(folder, hint=_HINT)
        self._refuse_foreign()
        self.shape = self._read_shape()

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
        return self._tensors.weight(self._stored_name(name))

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
        if beside.is_file():
            return beside.read_text("utf-8")
        template = self._json("tokenizer_config.json", optional=True).get("chat_template")
        if not isinstance(template, str):
            raise self._broken("has no chat template")
        return template

    def _stop_tokens(self) -> tuple[int, ...]:
        for origin in (self._json("generation_config.json", optional=True), self._config):
            stop = origin.get("eos_token_id")
            if stop is not None:
                return tuple(stop) if isinstance(stop, list) else (int(stop),)
        raise self._broken("names no eos_token_id")

    def _refuse_foreign(self) -> None:
        config = self._config
        kind = config.get("model_type")
        if kind not in {"llama", "mistral"} or config.get("sliding_window"):
            raise self._broken(f"is of type {kind}, which the graph builder does not know")
        if config.get("rope_scaling") or config.get("hidden_act", "silu") != "silu":
            raise self._broken("scales its rotary embedding or has another activation than SiLU")
        biased = next(
            (name for name in sorted(self._tensors.names) if name.endswith(".bias")), None
        )
        if biased is not None:
            raise self._broken(f"has {biased}, which the graph builder does not know")

    def _read_shape(self) -> LlamaShape:
        config = self._config
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return LlamaShape(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                feed_forward=int(config["intermediate_size"]),
                vocab=int(config["vocab_size"]),
                context_tokens=int(config["max_position_embeddings"]),
                norm_epsilon=float(config["rms_norm_eps"]),
                rope_base=self._rope_base(),
                ties_embedding=HF_TOP_NAMES[HEAD] not in self._tensors.names,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"has a config.json without a usable {error}") from error

    def _rope_base(self) -> float:
        # transformers 5 moved it into a table.
        table = self._config.get("rope_parameters") or {}
        if table.get("rope_type", "default") != "default":
            raise self._broken("scales its rotary embedding")
        return float(table.get("rope_theta") or self._config.get("rope_theta") or 10_000.0)

    def _json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        path = self._folder / name
        if optional and not path.is_file():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise self._broken(f"has no readable {name}: {error}") from error

    def _stored_name(self, name: str) -> str:
        if name in HF_TOP_NAMES:
            return HF_TOP_NAMES[name]
        _, layer, part = name.split(".")
        return f"model.layers.{layer}.{HF_LAYER_NAMES[part]}"

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"the checkpoint {self._folder.name} {what}", hint=_HINT)
