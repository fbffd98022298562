"""A checkpoint as a transformers model, so that torch can teach it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

from models.checkpoint import EMBEDDING, FINAL_NORM, HEAD, Checkpoint, layer_weight
from models.errors import CheckpointError, MissingExtraError

_NAMES: Final = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}


def load_student(checkpoint: Checkpoint, folder: Path | None) -> Any:
    """Return a causal model with the checkpoint's weights.

    Args:
        checkpoint: Its canonical weights.
        folder: A checkpoint folder that transformers reads itself; None: `checkpoint` is a plain
            Llama, as a GGUF file holds it.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        CheckpointError: The architecture cannot be taught from a GGUF file.
    """
    try:
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            f"teaching needs torch and transformers: {error}",
            hint="pip install 'edgefleet[distill]'",
        ) from error
    if folder is not None:
        return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    config = transformers.LlamaConfig(**_describe(checkpoint))
    model = transformers.LlamaForCausalLM(config)
    state = {name: torch.from_numpy(weight.copy()) for name, weight in _weights(checkpoint)}
    missing, unknown = model.load_state_dict(state, strict=False)
    lost = [name for name in missing if name != "lm_head.weight"]
    if lost or unknown:
        raise CheckpointError(
            f"not a plain Llama: {sorted([*lost, *unknown])[:3]}",
            hint="teach it from a Hugging Face folder instead of a GGUF file",
        )
    model.tie_weights()
    return model


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    shape = checkpoint.shape
    return {
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


def _weights(checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    """Return every weight under the name that transformers gives it."""
    found = [
        ("model.embed_tokens.weight", checkpoint.weight(EMBEDDING)),
        ("model.norm.weight", checkpoint.weight(FINAL_NORM)),
    ]
    if not checkpoint.shape.ties_embedding:
        found.append(("lm_head.weight", checkpoint.weight(HEAD)))
    for layer in range(checkpoint.shape.layers):
        found.extend(
            (f"model.layers.{layer}.{theirs}.weight", checkpoint.weight(layer_weight(layer, ours)))
            for ours, theirs in _NAMES.items()
        )
    return found
