"""Make the fixtures beside this file: tiny random checkpoints with transformers' own logits.

Needs torch and transformers 4.57, which tests do not: `python make.py` writes one folder a family,
with `config.json`, `model.safetensors` and `golden.npz`: token ids [sequences, tokens] and float32
logits [sequences, tokens, vocab], computed in float32 from the weights as they are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB, TOKENS, SEQUENCES = 272, 26, 2
WINDOW = 8
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Whatever a family can differ by is switched on in one of them.
FAMILIES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "llama": (
        torch.float16,
        {"rope_theta": 500.0, "rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": False},
    ),
    "mistral": (torch.bfloat16, {"sliding_window": WINDOW, "head_dim": 32}),
    "qwen2": (
        torch.bfloat16,
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3": (torch.bfloat16, {"head_dim": 32, "tie_word_embeddings": False}),
    "gemma3_text": (
        torch.bfloat16,
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "rope_local_base_freq": 100.0,
            "query_pre_attn_scalar": 20,
        },
    ),
}


def fill(model: torch.nn.Module, dtype: torch.dtype, seed: int) -> None:
    """Random weights that make clear decisions, rounded to what the file will hold."""
    generator = torch.Generator().manual_seed(seed)
    is_gemma = model.config.model_type == "gemma3_text"
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            noise = (0 if is_gemma else 1) + noise / 4
            if name == "model.norm.weight":
                noise = noise + 2
        elif weight.ndim == 1:
            noise = noise / 2
        elif "embed" in name:
            # Gemma multiplies it by 8: more, and layers would hardly matter to a tied head.
            noise = noise / (16 if is_gemma else 4)
        else:
            noise = noise / weight.shape[1] ** 0.5
        weight.data = noise.to(dtype).float()


def make(family: str, folder: Path, seed: int) -> None:
    dtype, differences = FAMILIES[family]
    config = AutoConfig.for_model(family, **(SIZES | differences))
    # The only switch before a model exists.
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    fill(model, dtype, seed)
    ids = np.random.default_rng(seed).integers(3, VOCAB, (SEQUENCES, TOKENS))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits
    folder.mkdir(exist_ok=True)
    tied = config.tie_word_embeddings
    tensors = {
        name: weight.to(dtype).contiguous()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config.save_pretrained(folder)
    np.savez_compressed(folder / "golden.npz", token_ids=ids, logits=logits.numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, family in enumerate(FAMILIES):
        make(family, Path(__file__).parent / family, seed=11 + number)
