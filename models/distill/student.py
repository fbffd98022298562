"""A checkpoint as a transformers model, so that torch can teach it.

The model is made from the sizes and weights that the graph builder sees, whatever file they came
from: layers that the recipe prunes are gone, an adapter is merged.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from models.checkpoints.checkpoint import FINAL_NORM, Checkpoint, DecoderShape
from models.checkpoints.hf_config import HF_TOP_NAMES, stored_name
from models.errors import CheckpointError, MissingExtraError

_WINDOWED: Final = "sliding_attention"
_FULL: Final = "full_attention"


def load_student(checkpoint: Checkpoint) -> Any:
    """Return a causal model with the checkpoint's weights, in 32-bit floats.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        CheckpointError: transformers has no model of this shape.
    """
    try:
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            f"teaching needs torch and transformers: {error}",
            hint="pip install 'edgefleet[distill]'",
        ) from error
    shape = checkpoint.shape
    config = transformers.AutoConfig.for_model(model_type(shape), **_describe(shape))
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32)
    state = {}
    for name in shape.sizes():
        stored = stored_name(name, has_sandwich_norms=shape.has_sandwich_norms)
        state[stored] = torch.from_numpy(_stored_weight(checkpoint, name))
    missing, unknown = model.load_state_dict(state, strict=False)
    lost = [name for name in missing if name != HF_TOP_NAMES["head"]]
    if lost or unknown:
        raise _unknown(
            f"transformers' {config.model_type} differs: {sorted([*lost, *unknown])[:3]}"
        )
    model.tie_weights()
    if shape.rope.divisors and not shape.has_sandwich_norms:
        _stretch(model, torch, shape)
    return model.eval()


def model_type(shape: DecoderShape) -> str:
    """Return what transformers calls a decoder of this shape.

    Raises:
        CheckpointError: It has no name for it.
    """
    traits = (shape.has_qkv_bias, shape.has_head_norms, shape.has_sandwich_norms)
    known = {
        (False, False, False): "mistral" if shape.window_layers else "llama",
        (True, False, False): "qwen2",
        (False, True, False): "qwen3",
        (False, True, True): "gemma3_text",
    }
    found = known.get(traits)
    if found is None:
        raise _unknown("biases and norms together, as no model of transformers has them")
    if found == "mistral" and len(shape.window_layers) < shape.layers:
        raise _unknown("some layers with a sliding window, which transformers' Mistral has not")
    return found


def _describe(shape: DecoderShape) -> dict[str, Any]:
    """Return the configuration; what a type does not know of it means nothing to it."""
    described: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context_tokens,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope.base,
        "tie_word_embeddings": shape.ties_embedding,
    }
    windows = set(shape.window_layers)
    described["sliding_window"] = shape.window_tokens if windows else None
    described["use_sliding_window"] = bool(windows)
    if model_type(shape) != "mistral":
        # Its windows are in all layers, and its configuration has no such key.
        described["layer_types"] = [
            _WINDOWED if layer in windows else _FULL for layer in range(shape.layers)
        ]
    return described | _gemma(shape) if shape.has_sandwich_norms else described


def _gemma(shape: DecoderShape) -> dict[str, Any]:
    """Return what only Gemma's configuration says."""
    described: dict[str, Any] = {
        # transformers wants a whole number, and every Gemma has one.
        "query_pre_attn_scalar": round(shape.attention_scale**-2),
        "rope_local_base_freq": (shape.window_rope or shape.rope).base,
    }
    factors = set(shape.rope.divisors)
    if len(factors) > 1:
        raise _unknown("a rotary embedding stretched unevenly, which Gemma has not")
    if factors:
        described["rope_scaling"] = {"rope_type": "linear", "factor": factors.pop()}
    return described


def _stored_weight(checkpoint: Checkpoint, name: str) -> Any:
    """Return a weight of its own memory, as transformers holds it: Gemma's gains less one."""
    weight = checkpoint.weight(name).copy()
    is_gain = name == FINAL_NORM or name.endswith("norm")
    return weight - 1 if is_gain and checkpoint.shape.has_sandwich_norms else weight


def _stretch(model: Any, torch: Any, shape: DecoderShape) -> None:
    """Slow the rotary embedding: a GGUF file states the outcome of a scaling, not its kind."""
    rotary = model.model.rotary_emb
    slowed = rotary.inv_freq / torch.tensor(shape.rope.divisors, dtype=torch.float32)
    rotary.inv_freq = rotary.original_inv_freq = slowed


def _unknown(what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint cannot be taught: {what}",
        hint="teach a Llama, Mistral, Qwen2, Qwen2.5, Qwen3 or Gemma 3 (text)",
    )
