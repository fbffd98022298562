"""A BERT of two layers with made-up weights, written as sentence-transformers would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WORDS = (
    *("the", "light", "kitchen", "turn", "on", "off", "is", "door", "open"),
    *("what", "of", "pump", "pressure", "high", "?", ".", "##s"),
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = (
    "Turn on the kitchen light.",
    "Is the door open?",
    "What pressure is the pump on? The lights of the kitchen turn off.",
    "xyzzy",
)
MAX_TOKENS = 16
HIDDEN = 32
FEED_FORWARD = 64
CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "intermediate_size": FEED_FORWARD,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}


def tensors() -> dict[str, np.ndarray]:
    """Return the weights: sines, so that no library's random numbers decide them."""
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), HIDDEN),
        "embeddings.position_embeddings.weight": (24, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            sizes[f"{at}.attention.{part}.weight"] = (HIDDEN, HIDDEN)
            sizes[f"{at}.attention.{part}.bias"] = (HIDDEN,)
        sizes[f"{at}.intermediate.dense.weight"] = (FEED_FORWARD, HIDDEN)
        sizes[f"{at}.intermediate.dense.bias"] = (FEED_FORWARD,)
        sizes[f"{at}.output.dense.weight"] = (HIDDEN, FEED_FORWARD)
        sizes[f"{at}.output.dense.bias"] = (HIDDEN,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            sizes[f"{at}.{norm}.weight"] = (HIDDEN,)
            sizes[f"{at}.{norm}.bias"] = (HIDDEN,)
    return {name: _sines(number, name, size) for number, (name, size) in enumerate(sizes.items())}


def _sines(number: int, name: str, size: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(size))
    # Squares of the place: no two rows are each other's shifts.
    wave = np.sin(np.arange(count, dtype=np.float64) ** 2 * 0.37 + number * 1.7).reshape(size)
    if name.endswith("LayerNorm.weight"):
        return (1 + wave / 10).astype(np.float32)
    spread = 1.0 if "embeddings" in name else 2.5 / size[-1] ** 0.5
    return (wave * spread / (10 if name.endswith("bias") else 1)).astype(np.float32)


def write(folder: Path, **config: object) -> Path:
    """Write the checkpoint's folder; `config` changes what its config.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config), "utf-8")
    limits = json.dumps({"max_seq_length": MAX_TOKENS})
    (folder / "sentence_bert_config.json").write_text(limits, "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()), "utf-8")
    header: dict[str, object] = {}
    data = bytearray()
    for name, tensor in tensors().items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def _tokenizer() -> dict[str, object]:
    """Return a WordPiece tokenizer that pads everything, as published ones do."""
    marks = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    marks += [{"Sequence": {"id": "A", "type_id": 0}}]
    marks += [{"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    padding = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [
            {"id": number, "special": True, "content": VOCABULARY[number], "single_word": False}
            | {"lstrip": False, "rstrip": False, "normalized": False}
            for number in range(5)
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True}
        | {"handle_chinese_chars": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": marks,
            "pair": [*marks, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                mark: {"id": mark, "ids": [VOCABULARY.index(mark)], "tokens": [mark]}
                for mark in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(VOCABULARY)},
        },
    }
