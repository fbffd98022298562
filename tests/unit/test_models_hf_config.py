"""What a checkpoint folder's config.json says, and what is refused rather than built wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.checkpoints.checkpoint import DecoderShape
from models.checkpoints.hf_config import read_shape, refuse_foreign_tensors, stored_name
from models.checkpoints.rope import Rope
from models.errors import CheckpointError

_DECODERS = Path(__file__).parents[1] / "data" / "decoders"
_HEAD = "lm_head.weight"


def config_of(family: str, **changes: object) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((_DECODERS / family / "config.json").read_text())
    return config | changes


def shape_of(config: dict[str, Any], *tensors: str) -> DecoderShape:
    return read_shape("some-model", config, set(tensors))


def refusal(config: dict[str, Any], *tensors: str) -> str:
    with pytest.raises(CheckpointError, match="some-model") as caught:
        shape_of(config, *tensors)
    assert "Gemma 3" in caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts"),
        ({"model_type": "mamba", "ssm_cfg": {"layer": "m1"}}, "state-space"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "caps its attention"),
        ({"model_type": "gemma3", "vision_config": {"depth": 2}}, "multimodal"),
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised already"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_size": None}, "usable"),
    ],
)
def test_what_the_graph_cannot_compute_is_refused_by_name(
    changes: dict[str, object], told: str
) -> None:
    assert told in refusal(config_of("llama", **changes), _HEAD)


def test_gemma_with_soft_caps_or_sight_in_both_directions_is_refused() -> None:
    assert "caps its logits" in refusal(config_of("gemma3_text", final_logit_softcapping=30.0))
    assert "both directions" in refusal(config_of("gemma3_text", use_bidirectional_attention=True))


@pytest.mark.parametrize("tensor", ["model.layers.0.mlp.gate_proj.bias", "model.layers.9.x"])
def test_a_tensor_that_nobody_would_read_is_refused(tensor: str) -> None:
    shape = shape_of(config_of("llama"), _HEAD)
    known = {stored_name(name, has_sandwich_norms=False) for name in shape.sizes()}
    refuse_foreign_tensors("some-model", shape, known)
    refuse_foreign_tensors("some-model", shape, known | {"model.rotary_emb.inv_freq"})
    with pytest.raises(CheckpointError, match=tensor):
        refuse_foreign_tensors("some-model", shape, known | {tensor})


def test_a_head_is_tied_where_it_is_said_or_missing_or_the_family_does() -> None:
    untold = config_of("llama")
    untold.pop("tie_word_embeddings", None)
    assert not shape_of(untold, _HEAD).ties_embedding
    assert shape_of(untold).ties_embedding
    assert shape_of(config_of("llama", tie_word_embeddings=True), _HEAD).ties_embedding
    assert shape_of(config_of("gemma3_text"), _HEAD).ties_embedding
    told = config_of("llama", tie_word_embeddings=False)
    assert "output head" in refusal(told)


def test_windows_are_where_each_family_has_them() -> None:
    layers = 7
    gemma = config_of("gemma3_text", num_hidden_layers=layers, layer_types=None)
    assert shape_of(gemma).window_layers == (0, 1, 2, 3, 4, 6)
    assert shape_of(gemma | {"sliding_window_pattern": 2}).window_layers == (0, 2, 4, 6)
    assert shape_of(config_of("mistral"), _HEAD).window_layers == (0, 1)
    assert shape_of(config_of("mistral", sliding_window=None), _HEAD).window_layers == ()
    qwen = config_of("qwen2", layer_types=None)
    assert shape_of(qwen).window_layers == (1,)
    # Released checkpoints carry a window that they do not use.
    unused = shape_of(qwen | {"use_sliding_window": False})
    assert (unused.window_layers, unused.window_tokens) == ((), None)


def test_rotary_tables_of_newer_files_mean_the_same() -> None:
    old = config_of("gemma3_text")
    tables = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
    moved = ("rope_theta", "rope_scaling", "rope_local_base_freq")
    new = {key: value for key, value in old.items() if key not in moved}
    new["rope_parameters"] = tables
    assert shape_of(new) == shape_of(old)
    shape = shape_of(new)
    assert shape.rope_of(0) == Rope(base=100.0)
    assert shape.rope_of(2) == Rope(base=1_000_000.0, divisors=(4.0,) * 16)


def test_gemma_scales_attention_and_embedding_by_its_own_numbers() -> None:
    shape = shape_of(config_of("gemma3_text"))
    assert shape.attention_scale == pytest.approx(20**-0.5)
    assert shape.embedding_scale == pytest.approx(64**0.5)
