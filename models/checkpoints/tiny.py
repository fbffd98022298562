"""A decoder with random weights, small enough for tests: real files, an artefact in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from gguf import GGUFWriter, RopeScalingType
from tokenizers.pre_tokenizers import ByteLevel

from models.catalog import GoldenCheck, Recipe, Source
from models.checkpoints.checkpoint import (
    FINAL_NORM,
    Activation,
    DecoderShape,
    Float32Array,
)
from models.checkpoints.gguf_config import ROPE_DIVISORS
from models.checkpoints.gguf_config import stored_name as gguf_name
from models.checkpoints.hf_config import stored_name as hf_name
from models.checkpoints.rope import Rope

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STOP_TOKEN: Final = 2
MERGES: Final = ("Ġ t", "Ġ a", "h e", "Ġt he", "1 2")
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NORMAL: Final = 1
_CONTROL: Final = 3


def tiny_vocabulary() -> list[str]:
    """Return its tokens by id: special ones, every byte, a few merges."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet()), *merged]


def tiny_shape(architecture: str = "llama", *, ties_embedding: bool = True) -> DecoderShape:
    """Return a shape of two layers, with all by which `architecture` (as GGUF has it) differs."""
    shape = DecoderShape(
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        feed_forward=96,
        vocab=len(tiny_vocabulary()),
        context_tokens=512,
        norm_epsilon=2.0**-17,
        rope=Rope(),
        ties_embedding=ties_embedding,
        attention_scale=16**-0.5,
        has_qkv_bias=architecture == "qwen2",
        has_head_norms=architecture in {"qwen3", "gemma3"},
    )
    if architecture != "gemma3":
        return shape
    return msgspec.structs.replace(
        shape,
        rope=Rope(base=1_000_000.0, divisors=(8.0,) * 8),
        embedding_scale=8.0,
        activation=Activation.GELU_TANH,
        has_sandwich_norms=True,
        window_tokens=8,
        window_layers=(0, 1),
        window_rope=Rope(),
    )


class TinyCheckpoint:
    """Random weights for a small decoder; the same seed gives the same ones."""

    def __init__(self, shape: DecoderShape | None = None, *, seed: int = 7) -> None:
        self.shape = shape or tiny_shape()
        random = np.random.default_rng(seed)
        self.weights: dict[str, Float32Array] = {}
        for name, size in self.shape.sizes().items():
            spread = random.standard_normal(size).astype(np.float32)
            if name.endswith("norm"):
                weight = 1 + spread / 10
            else:
                weight = spread / 2 if name.endswith("bias") else spread / size[-1] ** 0.5
            self.weights[name] = weight.astype(np.float32)
        # Clear decisions, as a trained model makes most of the time.
        self.weights[FINAL_NORM] *= np.float32(4)

    def weight(self, name: str) -> Float32Array:
        """Return one weight."""
        return self.weights[name]


def write_tiny_gguf(path: Path, checkpoint: TinyCheckpoint, *, architecture: str = "llama") -> None:
    """Write it as llama.cpp's converter would, a Llama's rows of q and k in its own order."""
    writer = GGUFWriter(str(path), architecture)
    _write_sizes(writer, checkpoint.shape)
    _write_vocabulary(writer)
    for name, weight in checkpoint.weights.items():
        is_permuted = architecture == "llama"
        stored = _interleave(name, weight, checkpoint.shape) if is_permuted else weight
        writer.add_tensor(gguf_name(name), stored)
    if architecture == "llama" and checkpoint.shape.rope.divisors:
        writer.add_tensor(ROPE_DIVISORS, np.array(checkpoint.shape.rope.divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: GGUFWriter, shape: DecoderShape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_context_length(shape.context_tokens)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope.base)
    if len(set(shape.rope.divisors)) == 1:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope.divisors[0])
    if shape.window_tokens:
        writer.add_sliding_window(shape.window_tokens)


def _write_vocabulary(writer: GGUFWriter) -> None:
    tokens = tiny_vocabulary()
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    special = len(SPECIAL_TOKENS)
    writer.add_token_types([_CONTROL] * special + [_NORMAL] * (len(tokens) - special))
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(STOP_TOKEN)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tiny_folder(folder: Path, checkpoint: TinyCheckpoint, tokenizer_json: str) -> None:
    """Write a Llama as `save_pretrained` would."""
    shape = checkpoint.shape
    config = {
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context_tokens,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope.base,
        "eos_token_id": STOP_TOKEN,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    header: dict[str, object] = {}
    data = bytearray()
    for name, weight in checkpoint.weights.items():
        stored = hf_name(name, has_sandwich_norms=shape.has_sandwich_norms)
        start = len(data)
        data += weight.tobytes()
        offsets = [start, len(data)]
        header[stored] = {"dtype": "F32", "shape": weight.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def tiny_entry(gguf: Path) -> Recipe:
    """Return a recipe that builds from that file."""
    return Recipe(
        name="tiny",
        version="1.0.0",
        summary="random weights",
        source=Source(url=f"file:{gguf}"),
        golden=(GoldenCheck(prompt="the 12 cats"),),
    )


def _interleave(name: str, weight: Float32Array, shape: DecoderShape) -> Float32Array:
    heads = {"q": shape.heads, "k": shape.kv_heads}.get(name.rpartition(".")[2])
    if heads is None:
        return weight
    rows = [
        head * shape.head_dim + half * shape.head_dim // 2 + pair
        for head in range(heads)
        for pair in range(shape.head_dim // 2)
        for half in range(2)
    ]
    return np.ascontiguousarray(weight[rows])
