"""A complete model artefact with random weights, made in a moment: two layers of a Llama.

It is quantised as the real one (8-bit blocks), so that batching is tested on the same operators.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edge_worker.adapters.artefact import Artefact, load_artefact
from fleet_protocol.manifest import MANIFEST_NAME, Architecture, Manifest, ModelFile

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED = 2, 32, 2, 1, 16, 64
CONTEXT_TOKENS = 128
BLOCK = 32
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("he", "ll", "hell", "th", "the", "in", "ing", "Ã©", "Ġa", "Ġt")


def build_artefact(folder: Path, *, stop_tokens: tuple[int, ...] = (2,), seed: int = 7) -> Artefact:
    """Write an artefact into `folder` and return it, verified."""
    tokenizer = build_tokenizer()
    vocab = tokenizer.get_vocab_size()
    graph = build_graph(printable_tokens(tokenizer), vocab=vocab, seed=seed)
    return write_artefact(folder, tokenizer, graph, stop_tokens=stop_tokens)


def write_artefact(
    folder: Path,
    tokenizer: Tokenizer,
    graph: onnx.ModelProto,
    *,
    stop_tokens: tuple[int, ...] = (2,),
    calculates: bool = False,
) -> Artefact:
    """Write what an artefact consists of and return it, verified."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab = tokenizer.get_vocab_size()
    onnx.save(graph, folder / "model.onnx")
    manifest = Manifest(
        name="tiny",
        version="1",
        graph="model.onnx",
        tokenizer="tokenizer.json",
        chat_template=TEMPLATE,
        context_tokens=CONTEXT_TOKENS,
        memory_mb=1,
        stop_tokens=stop_tokens,
        opset=22,
        source="random",
        licence="Apache-2.0",
        quantization="int8 weight-only, block 32",
        architecture=Architecture(layers=LAYERS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, vocab=vocab),
        files=tuple(describe(folder, name) for name in ("model.onnx", "tokenizer.json")),
        calculates=calculates,
    )
    write_manifest(folder, manifest)
    return load_artefact(folder)


def describe(folder: Path, name: str) -> ModelFile:
    data = (folder / name).read_bytes()
    return ModelFile(path=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))


def build_tokenizer(words: tuple[str, ...] = WORDS) -> Tokenizer:
    """Byte-level BPE: control tokens, the 256 bytes, and a few merges."""
    names = [*CONTROLS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in words:
        left = next(word[:cut] for cut in range(len(word) - 1, 0, -1) if word[:cut] in names)
        merges.append((left, word[len(left) :]))
        names.append(word)
        if merges[-1][1] not in names:
            raise AssertionError(f"{word} is made of parts that are no tokens")
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in CONTROLS])
    return tokenizer


def printable_tokens(tokenizer: Tokenizer) -> list[int]:
    """Those the random model may say: ASCII text, and both halves and the whole of an é."""
    said = [*(chr(code) for code in range(0x21, 0x7F)), "Ġ", "Ã", "©", *WORDS]
    return [number for name in said if (number := tokenizer.token_to_id(name)) is not None]


class _Graph:
    """Collects nodes and weights."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: object) -> str:
        domain = attributes.pop("domain", "com.microsoft")
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def norm(self, source: str, target: str) -> str:
        scale = self.weight(f"{target}.scale", np.ones(HIDDEN, np.float32))
        return self.add(
            "SimplifiedLayerNormalization", [source, scale], [target], domain="", epsilon=1e-5
        )

    def matrix(self, source: str, target: str, matrix: np.ndarray) -> str:
        """Multiply source [.., K] by matrix [N, K] in 8-bit blocks around an implied 128."""
        rows, columns = matrix.shape
        blocks = matrix.reshape(rows, columns // BLOCK, BLOCK)
        scales = np.maximum(np.abs(blocks).max(-1) / 127, 1e-8).astype(np.float32)
        numbers = (np.rint(blocks / scales[..., None]) + 128).astype(np.uint8)
        return self.add(
            "MatMulNBits",
            [source, self.weight(f"{target}.q", numbers), self.weight(f"{target}.s", scales)],
            [target],
            K=columns,
            N=rows,
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def dense(self, source: str, target: str, rows: int, columns: int) -> str:
        matrix = self.random.normal(0, 1.2 / np.sqrt(columns), (rows, columns))
        return self.matrix(source, target, matrix.astype(np.float32))


def build_graph(said: list[int], *, vocab: int, seed: int) -> onnx.ModelProto:
    """A graph of the shape that `Architecture` describes."""
    graph = _Graph(seed)
    embedding = graph.random.normal(0, 1, (vocab, HIDDEN)).astype(np.float32)
    current = graph.add(
        "Gather", [graph.weight("embedding", embedding), "input_ids"], ["x0"], domain=""
    )
    angles = np.outer(
        np.arange(CONTEXT_TOKENS), 10_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    )
    graph.weight("cos", np.cos(angles).astype(np.float32))
    graph.weight("sin", np.sin(angles).astype(np.float32))
    for layer in range(LAYERS):
        current = _add_layer(graph, current, layer)
    graph.weight("end", np.array([np.iinfo(np.int64).max], np.int64))
    graph.weight("axis", np.array([1], np.int64))
    graph.add("Neg", ["logit_tokens"], ["start"], domain="")
    parts = [graph.norm(current, "xn"), "start", "end", "axis"]
    last = graph.add("Slice", parts, ["xl"], domain="")
    head = np.zeros((vocab, HIDDEN), np.float32)
    head[said] = graph.random.normal(0, 0.6, (len(said), HIDDEN))
    graph.matrix(last, "logits", head)
    return _finish(graph, vocab)


def _add_layer(graph: _Graph, source: str, layer: int) -> str:
    normed = graph.norm(source, f"n{layer}")
    qkv = graph.dense(normed, f"qkv{layer}", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
    pasts = [f"past.{layer}.{side}" for side in ("key", "value")]
    presents = [f"present.{layer}.{side}" for side in ("key", "value")]
    mixed = graph.add(
        "GroupQueryAttention",
        [qkv, "", "", *pasts, "seqlens_k", "total_len", "cos", "sin"],
        [f"a{layer}", *presents],
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    attended = graph.dense(mixed, f"o{layer}", HIDDEN, HEADS * HEAD_DIM)
    middle = graph.add("Add", [source, attended], [f"m{layer}"], domain="")
    up = graph.dense(graph.norm(middle, f"mn{layer}"), f"u{layer}", FEED, HIDDEN)
    bent = graph.add("Tanh", [up], [f"t{layer}"], domain="")
    down = graph.dense(bent, f"d{layer}", HIDDEN, FEED)
    return graph.add("Add", [middle, down], [f"x{layer + 1}"], domain="")


def _finish(graph: _Graph, vocab: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        value("seqlens_k", TensorProto.INT32, ["batch"]),
        value("total_len", TensorProto.INT32, [1]),
        value("logit_tokens", TensorProto.INT64, [1]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "logit_tokens", vocab])]
    shape = ["batch", KV_HEADS, "max_len", HEAD_DIM]
    for layer in range(LAYERS):
        for side in ("key", "value"):
            inputs.append(value(f"past.{layer}.{side}", TensorProto.FLOAT, shape))
            outputs.append(value(f"present.{layer}.{side}", TensorProto.FLOAT, shape))
    return helper.make_model(
        helper.make_graph(graph.nodes, "tiny", inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
