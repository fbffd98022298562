"""The `config.json` of Hugging Face checkpoints, read as the shape of a decoder."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Final

from models.checkpoints.checkpoint import EMBEDDING, FINAL_NORM, HEAD, Activation, DecoderShape
from models.checkpoints.rope import Rope
from models.errors import CheckpointError

HF_TOP_NAMES: Final[dict[str, str]] = {
    EMBEDDING: "model.embed_tokens.weight",
    HEAD: "lm_head.weight",
    FINAL_NORM: "model.norm.weight",
}
HF_LAYER_NAMES: Final[dict[str, str]] = {
    "attention_norm": "input_layernorm.weight",
    "feed_forward_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
PROJECTIONS: Final[dict[str, str]] = {
    part: stored.removesuffix(".weight")
    for part, stored in HF_LAYER_NAMES.items()
    if stored.endswith("_proj.weight")
}
"""The layer's matrices, as modules of transformers."""
# Where a layer has four norms, the same name means another one.
_SANDWICH_NAMES: Final[dict[str, str]] = {
    "post_attention_norm": "post_attention_layernorm.weight",
    "feed_forward_norm": "pre_feedforward_layernorm.weight",
    "post_feed_forward_norm": "post_feedforward_layernorm.weight",
}
_ACTIVATIONS: Final = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
_GEMMA: Final = "gemma3_text"
_FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3", _GEMMA)
SUPPORTED: Final = "Llama, Mistral, Qwen2, Qwen2.5, Qwen3 and Gemma 3 (text only)"
# What a foreign checkpoint is, by a key in its configuration.
_FOREIGN_KEYS: Final = {
    "vision_config": "is multimodal",
    "audio_config": "is multimodal",
    "text_config": "is multimodal",
    "quantization_config": "is quantised already",
    "num_experts": "is a mixture of experts",
    "num_local_experts": "is a mixture of experts",
    "ssm_cfg": "is a state-space model",
    "final_logit_softcapping": "caps its logits softly",
    "attn_logit_softcapping": "caps its attention softly",
    "use_bidirectional_attention": "attends in both directions",
}
_WINDOWED: Final = "sliding_attention"


def stored_name(name: str, *, has_sandwich_norms: bool) -> str:
    """Return the name that a checkpoint's files give a weight of canonical name `name`."""
    if name in HF_TOP_NAMES:
        return HF_TOP_NAMES[name]
    _, layer, part = name.split(".")
    names = HF_LAYER_NAMES | _SANDWICH_NAMES if has_sandwich_norms else HF_LAYER_NAMES
    return f"model.layers.{layer}.{names[part]}"


def stores_gains_less_one(config: dict[str, Any]) -> bool:
    """Tell whether the checkpoint's norms multiply by 1 + weight."""
    return config.get("model_type") == _GEMMA


def read_shape(name: str, config: dict[str, Any], tensors: AbstractSet[str]) -> DecoderShape:
    """Return the shape of the checkpoint `name`, which stores `tensors`.

    Raises:
        CheckpointError: Not a supported decoder, or the configuration is incomplete.
    """
    _refuse_foreign(name, config)
    try:
        return _Configuration(config, tensors).shape()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refused(name, f"has a config.json without a usable {error}") from error


def refuse_foreign_tensors(name: str, shape: DecoderShape, tensors: AbstractSet[str]) -> None:
    """Raise CheckpointError for a tensor that the shape has no use for: it would be left out."""
    sandwich = shape.has_sandwich_norms
    known = {stored_name(weight, has_sandwich_norms=sandwich) for weight in shape.sizes()}
    # A tied head is sometimes stored a second time; older files hold the rotary frequencies.
    foreign = sorted(
        tensor
        for tensor in tensors - known - {HF_TOP_NAMES[HEAD]}
        if not tensor.endswith("rotary_emb.inv_freq")
    )
    if foreign:
        raise _refused(name, f"has {foreign[0]}, which the graph builder does not know")


class _Configuration:
    """A configuration of a known family; its methods raise on what is missing or unusable."""

    def __init__(self, config: dict[str, Any], tensors: AbstractSet[str]) -> None:
        self._config = config
        self._tensors = tensors
        self._is_gemma = config["model_type"] == _GEMMA
        self._layers = int(config["num_hidden_layers"])

    def shape(self) -> DecoderShape:
        config = self._config
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        windows = self._window_layers()
        return DecoderShape(
            layers=self._layers,
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            feed_forward=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            context_tokens=int(config["max_position_embeddings"]),
            norm_epsilon=float(config["rms_norm_eps"]),
            rope=self._rope(head_dim),
            ties_embedding=self._ties_embedding(),
            attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
            embedding_scale=hidden**0.5 if self._is_gemma else 1.0,
            activation=self._activation(),
            has_qkv_bias=self._has("q_bias"),
            has_head_norms=self._has("q_norm"),
            has_sandwich_norms=self._is_gemma,
            window_tokens=int(config["sliding_window"]) if windows else None,
            window_layers=windows,
            window_rope=self._window_rope() if windows else None,
        )

    def _has(self, part: str) -> bool:
        return f"model.layers.0.{HF_LAYER_NAMES[part]}" in self._tensors

    def _activation(self) -> Activation:
        key = "hidden_activation" if self._is_gemma else "hidden_act"
        named = self._config.get(key) or ("gelu_pytorch_tanh" if self._is_gemma else "silu")
        if named not in _ACTIVATIONS:
            raise ValueError(f"activation: {named!r} is not known")
        return _ACTIVATIONS[named]

    def _ties_embedding(self) -> bool:
        stored = HF_TOP_NAMES[HEAD] in self._tensors
        ties = self._config.get("tie_word_embeddings")
        if ties is False and not stored:
            raise ValueError("output head: it is neither stored nor tied")
        return (self._is_gemma if ties is None else bool(ties)) or not stored

    def _rope(self, head_dim: int) -> Rope:
        config = self._config
        # transformers 5 moved base and scaling into one table, or into one a kind of layer.
        table = config.get("rope_parameters") or {}
        table = table.get("full_attention") or table
        base = table.get("rope_theta") or config.get("rope_theta")
        base = base or (1_000_000.0 if self._is_gemma else 10_000.0)
        if float(config.get("partial_rotary_factor") or 1) != 1:
            raise ValueError("rotary embedding: it turns only a part of each head")
        scaling = table or config.get("rope_scaling") or {}
        return Rope(base=float(base)).stretched(head_dim, scaling)

    def _window_rope(self) -> Rope | None:
        """Return Gemma's second rotary embedding; a stretch of the first is not of this one."""
        if not self._is_gemma:
            return None
        tables = self._config.get("rope_parameters") or {}
        base = tables.get(_WINDOWED, {}).get("rope_theta")
        return Rope(base=float(base or self._config.get("rope_local_base_freq") or 10_000.0))

    def _window_layers(self) -> tuple[int, ...]:
        config, layers = self._config, range(self._layers)
        is_qwen = config["model_type"].startswith("qwen")
        if not config.get("sliding_window") or (is_qwen and not config.get("use_sliding_window")):
            return ()
        kinds = config.get("layer_types")
        if kinds is not None:
            return tuple(layer for layer in layers if kinds[layer] == _WINDOWED)
        if is_qwen:
            return tuple(layers[int(config["max_window_layers"]) :])
        if not self._is_gemma:
            return tuple(layers)
        pattern = int(config.get("sliding_window_pattern") or 6)
        return tuple(layer for layer in layers if (layer + 1) % pattern)


def _refuse_foreign(name: str, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    told = next((told for key, told in _FOREIGN_KEYS.items() if config.get(key)), None)
    if kind not in _FAMILIES:
        what = f"is of type {kind}, which the graph builder does not know"
        raise _refused(name, f"{what}: it {told}" if told else what)
    if told:
        raise _refused(name, f"{told}, which the graph builder does not know")


def _refused(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {name} {what}",
        hint=f"use a complete checkpoint of {SUPPORTED}, with safetensors weights",
    )
