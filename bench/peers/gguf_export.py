"""An artefact's own weights as a GGUF file, so that llama.cpp computes with the very same ones.

llama.cpp's Q8_0 keeps blocks of 32 signed 8-bit levels with one scale of 16 bits: the weights that
our 8 bits stand for are rounded once more, by less. A distilled or smoothed model is compared as it
is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize
from onnx import helper, numpy_helper

from edge_worker.adapters.artefact import Artefact
from models.checkpoints.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LAYER_MATRICES,
    LAYER_NORMS,
    DecoderShape,
    Float32Array,
    layer_weight,
)
from models.checkpoints.gguf_config import GGUF_LAYER_NAMES, GGUF_TOP_NAMES
from models.checkpoints.rope import Rope
from models.graphs.quantize import (
    QuantizedChannels,
    QuantizedMatrix,
    dequantize_blocks,
    dequantize_channels,
    turn_columns,
)
from models.graphs.row_products import turned_together

# Constants of a graph that are no weights.
_FURNITURE: Final = ("rotary.", "embedding.shape", "embedding.one", "last.", "turn.", "input_")
# Of a matrix, by number format.
_KINDS: Final = ("values", "bytes", "scales", "zeros")
# Products and which of their inputs are a matrix's numbers.
_WEIGHTS_INPUTS: Final = {"MatMulNBits": (1, 2), "MatMulIntegerToFloat": (1, 3, 5)}
_ROPE_DIGITS: Final = 6


class UnknownGraphError(ValueError):
    """The artefact is no plain Llama with 8-bit weights."""


class ArtefactCheckpoint:
    """The weights of an artefact's graph, dequantised, by their canonical names."""

    def __init__(self, graph: Path, *, context_tokens: int) -> None:
        """Read the graph. Raises UnknownGraphError."""
        model = onnx.load(str(graph)).graph
        self._products = [node for node in model.node if node.op_type in _WEIGHTS_INPUTS]
        # A tied head reads the embedding's table; what it is called then is the factory's affair.
        self._tables = {
            EMBEDDING: [name for node in model.node if (name := _looked_up(node))],
            HEAD: [
                _table_name(node.input[1])
                for node in self._products
                if node.output[0].startswith("logits")
            ],
        }
        self._turned = {
            _table_name(node.input[1])
            for node in self._products
            if node.input[0].endswith(".turned.bytes")
        }
        self._constants = {constant.name: constant for constant in model.initializer}
        self._attributes = {
            (node.op_type, attribute.name): helper.get_attribute_value(attribute)
            for node in model.node
            for attribute in node.attribute
        }
        self.shape = self._read_shape(context_tokens)
        self._refuse_foreign()

    def weight(self, name: str) -> Float32Array:
        """Return one weight; q, k and v are cut out of the packed matrix of the three."""
        if name.endswith("norm"):
            return np.asarray(self._constant(name), np.float32)
        if name in {EMBEDDING, HEAD}:
            return self._matrix(self._table(name))
        layer, _, part = name.rpartition(".")
        if part not in {"q", "k", "v"}:
            return self._matrix(name)
        query, key = (n * self.shape.head_dim for n in (self.shape.heads, self.shape.kv_heads))
        starts = {"q": (0, query), "k": (query, query + key), "v": (query + key, query + 2 * key)}
        return self._matrix(f"{layer}.qkv")[slice(*starts[part])]

    def names(self) -> list[str]:
        """Return the canonical names of all weights."""
        parts = (*LAYER_NORMS, *LAYER_MATRICES)
        top = [EMBEDDING, FINAL_NORM, *([] if self.shape.ties_embedding else [HEAD])]
        layers = range(self.shape.layers)
        return [*top, *(layer_weight(layer, part) for layer in layers for part in parts)]

    def bytes_per_token(self) -> int:
        """Return the bytes of levels and scales that one generated token reads."""
        tables = {
            node.input[place] for node in self._products for place in _WEIGHTS_INPUTS[node.op_type]
        }
        return sum(self._constant(name).nbytes for name in tables)

    def _read_shape(self, context_tokens: int) -> DecoderShape:
        try:
            heads = int(self._attributes["GroupQueryAttention", "num_heads"])
            kv_heads = int(self._attributes["GroupQueryAttention", "kv_num_heads"])
            epsilon = float(self._attributes["SkipSimplifiedLayerNormalization", "epsilon"])
        except KeyError as error:
            raise UnknownGraphError(f"the graph has no {error}") from error
        head_dim = 2 * self._constant("rotary.cos").shape[1]
        vocab, hidden = self._matrix(self._table(HEAD)).shape
        layers = sum(name.endswith(".qkv.scales") for name in self._constants)
        return DecoderShape(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=self._matrix("layers.0.up").shape[0],
            vocab=vocab,
            context_tokens=context_tokens,
            norm_epsilon=epsilon,
            rope=Rope(base=self._rope_base(head_dim)),
            attention_scale=head_dim**-0.5,
            ties_embedding=self._tables[EMBEDDING] == self._tables[HEAD],
        )

    def _rope_base(self, head_dim: int) -> float:
        """Return the base of the frequencies, from the slowest one's angle at position 1."""
        cosine, sine = (float(self._constant(f"rotary.{name}")[1, -1]) for name in ("cos", "sin"))
        base = np.arctan2(sine, cosine) ** (-head_dim / (head_dim - 2))
        return float(f"{base:.{_ROPE_DIGITS}g}")

    def _refuse_foreign(self) -> None:
        tables = {self._table(name) for name in (EMBEDDING, HEAD)}
        known = {
            FINAL_NORM,
            *(f"{table}.{kind}" for table in tables for kind in _KINDS),
        }
        for layer in range(self.shape.layers):
            known |= {layer_weight(layer, norm) for norm in LAYER_NORMS}
            for part in ("qkv", "o", "gate", "up", "down"):
                known |= {layer_weight(layer, f"{part}.{kind}") for kind in _KINDS}
        # A norm's own small constants carry its name in front.
        norms = tuple(f"{name}." for name in known if name.endswith("norm"))
        odd = [
            name
            for name in self._constants.keys() - known
            if not name.startswith((*_FURNITURE, *norms))
        ]
        if odd:
            raise UnknownGraphError(f"llama.cpp's plain Llama has no {', '.join(sorted(odd)[:3])}")

    def _table(self, name: str) -> str:
        """Return what the embedding's or the head's table is called in the graph."""
        if not self._tables[name]:
            raise UnknownGraphError(f"the graph's {name} has no 8-bit weights")
        return self._tables[name][0]

    def _matrix(self, name: str) -> Float32Array:
        if f"{name}.values" in self._constants:
            values, scales = (self._constant(f"{name}.{kind}") for kind in ("values", "scales"))
            return dequantize_blocks(QuantizedMatrix(values=values, scales=scales))
        levels, scales, zeros = (
            self._constant(f"{name}.{kind}") for kind in ("bytes", "scales", "zeros")
        )
        matrix = dequantize_channels(
            QuantizedChannels(values=levels, scales=scales, zero_points=zeros)
        )
        if name not in {*self._turned, *self._tables[EMBEDDING]}:
            return matrix
        return turn_columns(matrix, size=turned_together(matrix.shape[1]))

    def _constant(self, name: str) -> Any:
        if name not in self._constants:
            raise UnknownGraphError(f"the graph has no {name}")
        return numpy_helper.to_array(self._constants[name])


def _table_name(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _looked_up(node: onnx.NodeProto) -> str | None:
    """Return the table that the embedding's rows come from, if this node reads them."""
    if node.op_type == "GatherBlockQuantized":
        return _table_name(node.input[2])
    is_of_columns = node.op_type == "Gather" and node.input[0].endswith(".bytes")
    return _table_name(node.input[0]) if is_of_columns else None


def export_gguf(artefact: Artefact, target: Path) -> None:
    """Write the artefact's weights and tokenizer as a Q8_0 file.

    Raises:
        UnknownGraphError: llama.cpp's plain Llama cannot express the graph.
    """
    checkpoint = ArtefactCheckpoint(artefact.graph, context_tokens=artefact.manifest.context_tokens)
    partial = target.with_suffix(".partial")
    writer = GGUFWriter(str(partial), "llama")
    _write_shape(writer, checkpoint.shape)
    _write_tokenizer(writer, artefact)
    for name in checkpoint.names():
        weight = _interleave(name, checkpoint.weight(name), checkpoint.shape)
        if weight.ndim == 1:
            writer.add_tensor(_stored_name(name), weight)
            continue
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(_stored_name(name), quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def _write_shape(writer: GGUFWriter, shape: DecoderShape) -> None:
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope.base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab)


def _write_tokenizer(writer: GGUFWriter, artefact: Artefact) -> None:
    parts = json.loads(artefact.tokenizer.read_text("utf-8"))
    vocab: dict[str, int] = dict(parts["model"]["vocab"])
    added = parts["added_tokens"]
    vocab |= {token["content"]: token["id"] for token in added}
    named = {number: text for text, number in vocab.items()}
    # Rows of the embedding that no token has are padding, as llama.cpp's converter calls them.
    count = artefact.manifest.architecture.vocab
    special = {token["id"] for token in added if token["special"]}
    kinds = [
        TokenType.CONTROL if n in special else TokenType.NORMAL if n in named else TokenType.UNUSED
        for n in range(count)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(parts["pre_tokenizer"]))
    writer.add_token_list([named.get(n, f"[PAD{n}]") for n in range(count)])
    writer.add_token_types(kinds)
    merges = [one if isinstance(one, str) else " ".join(one) for one in parts["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)  # noqa: FBT003 - gguf's own signature
    writer.add_chat_template(artefact.manifest.chat_template)
    if artefact.manifest.stop_tokens:
        writer.add_eos_token_id(artefact.manifest.stop_tokens[0])


def _pre_tokenizer(rule: dict[str, Any]) -> str:
    """Return llama.cpp's name of a rule that cuts text before merging.

    The benchmark sends token ids, so a wrong one would only show where texts are compared.
    """
    kinds = {part["type"] for part in rule.get("pretokenizers", [rule])}
    return "smollm" if "Digits" in kinds else "gpt-2"


def _interleave(name: str, weight: Float32Array, shape: DecoderShape) -> Float32Array:
    """Bring the rows of q and k into llama.cpp's order; see `unpermute` of the GGUF reader."""
    heads = {"q": shape.heads, "k": shape.kv_heads}.get(name.rpartition(".")[2])
    if heads is None:
        return weight
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _stored_name(name: str) -> str:
    if name in GGUF_TOP_NAMES:
        return GGUF_TOP_NAMES[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{GGUF_LAYER_NAMES[part]}"
