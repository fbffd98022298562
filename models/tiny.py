"""A decoder with random weights, small enough for tests: real files, an artefact in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel

from models.catalog import GoldenCheck, Recipe, Source
from models.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LAYER_NORMS,
    Float32Array,
    LlamaShape,
    layer_weight,
)
from models.gguf_reader import GGUF_LAYER_NAMES, GGUF_TOP_NAMES
from models.safetensors_reader import HF_LAYER_NAMES, HF_TOP_NAMES

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


class TinyCheckpoint:
    """Random weights for a decoder of two layers; the same seed gives the same ones."""

    def __init__(self, *, seed: int = 7, ties_embedding: bool = True) -> None:
        self.shape = LlamaShape(
            layers=2,
            hidden=64,
            heads=4,
            kv_heads=2,
            head_dim=16,
            feed_forward=96,
            vocab=len(tiny_vocabulary()),
            context_tokens=512,
            norm_epsilon=2.0**-17,
            rope_base=10_000.0,
            ties_embedding=ties_embedding,
        )
        random = np.random.default_rng(seed)
        self.weights: dict[str, Float32Array] = {}
        for name, size in _sizes(self.shape).items():
            spread = random.standard_normal(size).astype(np.float32)
            is_norm = len(size) == 1
            weight = 1 + spread / 10 if is_norm else spread / size[-1] ** 0.5
            self.weights[name] = weight.astype(np.float32)
        # Clear decisions, as a trained model makes most of the time.
        self.weights[FINAL_NORM] *= np.float32(4)

    def weight(self, name: str) -> Float32Array:
        """Return one weight."""
        return self.weights[name]


def _sizes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = {
        "q": (query, shape.hidden),
        "k": (key, shape.hidden),
        "v": (key, shape.hidden),
        "o": (shape.hidden, query),
        "gate": (shape.feed_forward, shape.hidden),
        "up": (shape.feed_forward, shape.hidden),
        "down": (shape.hidden, shape.feed_forward),
    }
    sizes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden)}
    sizes[FINAL_NORM] = (shape.hidden,)
    if not shape.ties_embedding:
        sizes[HEAD] = (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        sizes |= {layer_weight(layer, norm): (shape.hidden,) for norm in LAYER_NORMS}
        sizes |= {layer_weight(layer, name): size for name, size in matrices.items()}
    return sizes


def write_tiny_gguf(path: Path, checkpoint: TinyCheckpoint) -> None:
    """Write it as llama.cpp's converter would, rows of q and k in its own order."""
    writer = GGUFWriter(str(path), "llama")
    _write_metadata(writer, checkpoint.shape)
    for name, weight in checkpoint.weights.items():
        stored = _interleave(name, weight, checkpoint.shape)
        writer.add_tensor(_stored_name(name, GGUF_TOP_NAMES, GGUF_LAYER_NAMES, "blk."), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: GGUFWriter, shape: LlamaShape) -> None:
    tokens = tiny_vocabulary()
    writer.add_license("apache-2.0")
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_context_length(shape.context_tokens)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    special = len(SPECIAL_TOKENS)
    writer.add_token_types([_CONTROL] * special + [_NORMAL] * (len(tokens) - special))
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(STOP_TOKEN)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tiny_folder(folder: Path, checkpoint: TinyCheckpoint, tokenizer_json: str) -> None:
    """Write it as `save_pretrained` would."""
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
        "rope_theta": shape.rope_base,
        "eos_token_id": STOP_TOKEN,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    header: dict[str, object] = {}
    data = bytearray()
    for name, weight in checkpoint.weights.items():
        stored = _stored_name(name, HF_TOP_NAMES, HF_LAYER_NAMES, "model.layers.")
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


def _interleave(name: str, weight: Float32Array, shape: LlamaShape) -> Float32Array:
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


def _stored_name(name: str, top: dict[str, str], layers: dict[str, str], prefix: str) -> str:
    if name in top:
        return top[name]
    _, layer, part = name.split(".")
    return f"{prefix}{layer}.{layers[part]}"
